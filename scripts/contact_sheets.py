"""Contact sheets of generated nodules, and of the real ones beside them.

    python scripts/contact_sheets.py --generated W/generated --dose-response W/dose --output O
    python scripts/contact_sheets.py --generated W/generated --datalist W/datalist.json --split test --output O

Writes guidance.png (one seed, all scales), seeds.png, findings.png (one finding moves, all else stays) and, with a data
list, beside_real.png. The last shows patients' images: it stays where you keep those.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nodule_plugin.data.datalist import datalist_kernel
from nodule_plugin.data.evaluation_images import LoadSetImaged, real_items
from nodule_plugin.data.generated import load_generated, read_picture
from nodule_plugin.errors import show_input_errors
from nodule_plugin.report.contact_sheet import beside_real, by_finding, by_guidance, by_seed, write_sheet

REAL_NOTICE = "Rows named real: LIDC-IDRI (CC BY 3.0). Rows named generated: synthetic. For research only."


def main() -> None:
    """Parse the command line and write the sheets there is something for."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", required=True, type=Path, help="folder that inference wrote")
    parser.add_argument("--dose-response", type=Path, help="folder that inference wrote with dose_response.json")
    parser.add_argument("--datalist", type=Path, help="whose nodules the images were generated for")
    parser.add_argument("--split", default="test", help="of the data list")
    parser.add_argument("--guidance-scale", type=float, help="of seeds.png and beside_real.png; the lowest by default")
    parser.add_argument("--limit", type=int, default=48, help="nodules in beside_real.png")
    parser.add_argument("--seed", type=int, default=0, help="of findings.png")
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    generated = load_generated(options.generated)
    scale = generated.guidance_scales[0] if options.guidance_scale is None else options.guidance_scale
    sheets = {"guidance.png": by_guidance(generated), "seeds.png": by_seed(generated, scale)}
    for name, cells in sheets.items():
        write_sheet(options.output / name, cells)
    if options.dose_response is not None:
        doses = load_generated(options.dose_response)
        strongest = doses.guidance_scales[-1]  # where a finding shows most
        write_sheet(options.output / "findings.png", by_finding(doses, strongest, options.seed))
    if options.datalist is not None:
        items = real_items(datalist=options.datalist, split=options.split)[: options.limit]
        size = read_picture(generated.items[0]["image"]).shape
        load = LoadSetImaged(size, generated.window_hu, datalist_kernel(options.datalist))
        real = {item["record"].id: load(item)["image"][0].numpy() for item in items}
        write_sheet(options.output / "beside_real.png", beside_real(generated, real, scale), REAL_NOTICE)
    print(f"wrote {', '.join(sorted(path.name for path in options.output.glob('*.png')))} to {options.output}")


if __name__ == "__main__":
    main()
