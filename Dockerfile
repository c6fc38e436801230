# The bundle and its package in one image; how to use it is in docs/packaging.md. Not built where it was written.
FROM python:3.11-slim

# Whoever runs the container, caches have a place to be written to.
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 HOME=/tmp

WORKDIR /opt/nodule
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY nodule_plugin ./nodule_plugin
RUN pip install --constraint constraints.txt ".[evaluate,train,reader-study,download,dicom,onnx]" && rm -rf nodule_plugin build *.egg-info

COPY bundle ./bundle
COPY scripts ./scripts

# The default output lies in the folder of the bundle.
RUN useradd nodule && chown nodule bundle
USER nodule
WORKDIR /opt/nodule/bundle
ENTRYPOINT ["python", "-m", "monai.bundle"]
CMD ["run", "--config_file", "configs/inference.json"]
