"""What the pages say, in English and Japanese. Every language has the same names; a test compares them."""

from __future__ import annotations

from collections.abc import Mapping

from nodule_plugin.reader_study.questions import CONFIDENCE_LABELS, LABELS

LANGUAGES = {"en": "English", "ja": "日本語"}
_DEGREES_JA = {1: "なし", 2: "ほぼなし", 3: "中等度", 4: "やや著明", 5: "著明"}

SCALE_LABELS: dict[str, dict[str, Mapping[int, str]]] = {
    "en": {**LABELS, "confidence": CONFIDENCE_LABELS},
    "ja": {
        "realism": {
            1: "まったく本物らしくない",
            2: "あまり本物らしくない",
            3: "どちらともいえない",
            4: "かなり本物らしい",
            5: "完全に本物らしい",
        },
        "malignancy": {
            1: "悪性の可能性は非常に低い",
            2: "悪性の可能性は低い",
            3: "判定困難",
            4: "悪性をやや疑う",
            5: "悪性を強く疑う",
        },
        "sphericity": {1: "線状", 2: "線状と卵円形の間", 3: "卵円形", 4: "卵円形と球形の間", 5: "球形"},
        "texture": {
            1: "非充実性(すりガラス状)",
            2: "非充実性と部分充実性の間",
            3: "部分充実性",
            4: "部分充実性と充実性の間",
            5: "充実性",
        },
        "margin": {1: "不明瞭", 2: "やや不明瞭", 3: "中間", 4: "ほぼ明瞭", 5: "明瞭"},
        "spiculation": _DEGREES_JA,
        "lobulation": _DEGREES_JA,
        "confidence": {
            1: "当て推量",
            2: "あまり自信がない",
            3: "ある程度自信がある",
            4: "かなり自信がある",
            5: "確信がある",
        },
    },
}

TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "realism": "Realism",
        "malignancy": "Malignancy",
        "sphericity": "Sphericity",
        "texture": "Texture",
        "margin": "Margin",
        "spiculation": "Spiculation",
        "lobulation": "Lobulation",
        "origin": "Is this image real or generated?",
        "real": "real",
        "generated": "generated",
        "confidence": "How sure are you of that?",
        "comment": "Comment",
        "optional": "optional",
        "cannot_judge": "cannot judge",
        "not_answered": "not answered",
        "welcome": (
            "You will see images of lung nodules, one at a time. Some were taken from CT scans, some were made by a "
            "computer program. Please rate each of them by itself."
        ),
        "rules": (
            "Each answer is stored before the next image appears. You may stop at any time and go on later with the "
            "same link. You may go back and change an answer: the earlier one is kept, and the change is recorded."
        ),
        "private": "This link is yours alone: please do not pass it on. No other reader can see your answers.",
        "research": "For research only. Not for diagnosis.",
        "rehearsal": "Rehearsal: this is a trial of the study; its answers do not count.",
        "phantoms": "Rehearsal: the images called real are phantoms (synthetic CT).",
        "progress": "{done} of {total} images answered",
        "start": "Start",
        "resume": "Go on with image {number}",
        "done": "All images are answered. Thank you.",
        "your_answers": "Your answers",
        "answer_to": "Image {number}",
        "answer_to_practice": "Practice image {number}",
        "changed_mark": "changed",
        "image_of": "Image {number} of {total}",
        "practice_of": "Practice image {number} of {total}",
        "practice_note": "This image is for practice. Its answer does not count.",
        "image_alt": "CT image of the nodule to be rated",
        "viewer": "Image",
        "viewer_keys": "+ and - zoom, 0 whole image, W next window, I invert, arrow keys move",
        "window": "Window",
        "window_stored": "Wide",
        "window_lung": "Lung",
        "window_soft": "Soft tissue",
        "level": "Level, HU",
        "width": "Width, HU",
        "zoom_in": "Zoom in",
        "zoom_out": "Zoom out",
        "zoom_fit": "Whole image",
        "invert": "Invert",
        "keyboard": "Keyboard",
        "keyboard_help": (
            "Tab moves from group to group, arrow keys within one. In a group, 1 to 5 choose and go on to the next, "
            "0 is “cannot judge”. Enter saves. With the image in focus: {viewer_keys}."
        ),
        "save": "Save and go on",
        "previous": "Previous image",
        "overview": "Overview",
        "skip": "Go to the questions",
        "answered_before": "You answered this image on {when}. If you change it, the earlier answer is kept as well.",
        "changed_now": "Image {number}: your answer was changed ({what}). The earlier one is kept as well.",
        "changed_now_practice": "Practice image {number}: answer changed ({what}). The earlier one is kept as well.",
        "errors": "Not saved yet. Please answer:",
        "too_long": "The comment is longer than {limit} characters.",
        "conflict": (
            "Not saved: meanwhile this image was answered elsewhere, perhaps in another tab. Below is what you entered "
            "here. Save it to change the answer, or leave this page to keep the one that is stored:"
        ),
        "sending": "Saving …",
        "offline": "No connection. What you entered is still here and will be sent as soon as the server answers.",
        "retry": "Try again now",
        "not_found": "This page does not exist",
        "not_found_text": "Please open the personal link that you were given.",
        "not_saved": "Not saved",
        "not_saved_text": "The server could not store the answer. Please go back and save once more.",
        "unavailable": "Not available at the moment",
        "unavailable_text": "The server cannot read a file of this study. Please tell the study's team.",
        "image_missing": "The image could not be loaded. Please reload this page; do not answer without it.",
        "language": "Language",
    },
    "ja": {
        "realism": "本物らしさ",
        "malignancy": "悪性度",
        "sphericity": "球形度",
        "texture": "内部性状",
        "margin": "辺縁",
        "spiculation": "スピキュラ",
        "lobulation": "分葉",
        "origin": "この画像は本物ですか、生成されたものですか",
        "real": "本物",
        "generated": "生成画像",
        "confidence": "その判断にどの程度自信がありますか",
        "comment": "コメント",
        "optional": "任意",
        "cannot_judge": "判断できない",
        "not_answered": "未回答",
        "welcome": (
            "肺結節の画像を1枚ずつ表示します。CTから切り出した画像と、コンピュータプログラムが作った画像があります。"
            "1枚ごとに独立して評価してください。"
        ),
        "rules": (
            "回答は次の画像が表示される前に保存されます。いつでも中断でき、同じリンクから後日再開できます。"
            "前に戻って回答を変更することもできます。変更前の回答も残り、変更したことが記録されます。"
        ),
        "private": "このリンクはあなた専用です。他の人に渡さないでください。回答は他の参加者には見えません。",
        "research": "研究専用です。診断には使用できません。",
        "rehearsal": "リハーサル:これは研究の試行です。回答は本番の集計には使われません。",
        "phantoms": "リハーサル:「本物」とされる画像はファントム(合成CT)です。",
        "progress": "{total}枚中{done}枚回答済み",
        "start": "開始",
        "resume": "画像{number}から再開",
        "done": "すべての画像に回答しました。ありがとうございました。",
        "your_answers": "あなたの回答",
        "answer_to": "画像{number}",
        "answer_to_practice": "練習画像{number}",
        "changed_mark": "変更あり",
        "image_of": "画像{number}/{total}",
        "practice_of": "練習画像{number}/{total}",
        "practice_note": "これは練習用の画像です。回答は集計されません。",
        "image_alt": "評価する結節のCT画像",
        "viewer": "画像",
        "viewer_keys": "+と-で拡大縮小、0で全体表示、Wで次のウィンドウ、Iで白黒反転、矢印キーで移動",
        "window": "ウィンドウ",
        "window_stored": "広い",
        "window_lung": "肺野",
        "window_soft": "縦隔",
        "level": "レベル(HU)",
        "width": "幅(HU)",
        "zoom_in": "拡大",
        "zoom_out": "縮小",
        "zoom_fit": "全体表示",
        "invert": "白黒反転",
        "keyboard": "キーボード操作",
        "keyboard_help": (
            "Tabで次の項目へ、矢印キーで項目内を移動します。項目内で1〜5を押すと選択して次へ進み、0は「判断できない」です。"
            "Enterで保存します。画像を選択中は、{viewer_keys}。"
        ),
        "save": "保存して次へ",
        "previous": "前の画像",
        "overview": "一覧",
        "skip": "質問へ移動",
        "answered_before": "この画像には{when}に回答済みです。変更した場合も、前の回答は残ります。",
        "changed_now": "画像{number}:回答を変更しました({what})。前の回答も残っています。",
        "changed_now_practice": "練習画像{number}:回答を変更しました({what})。前の回答も残っています。",
        "errors": "まだ保存されていません。次の項目に回答してください:",
        "too_long": "コメントは{limit}文字以内にしてください。",
        "conflict": (
            "保存されていません:この画像には別のタブなどで回答済みです。以下はここで入力した内容です。"
            "保存すると回答が変更されます。このページを離れると、保存済みの次の回答がそのまま残ります:"
        ),
        "sending": "保存しています…",
        "offline": "接続できません。入力内容はこのページに残っており、サーバーにつながり次第送信されます。",
        "retry": "今すぐ再試行",
        "not_found": "ページが見つかりません",
        "not_found_text": "お渡しした専用リンクを開いてください。",
        "not_saved": "保存されていません",
        "not_saved_text": "サーバーが回答を保存できませんでした。戻ってもう一度保存してください。",
        "unavailable": "現在利用できません",
        "unavailable_text": "サーバーがファイルを読み込めません。研究担当者に連絡し、後でもう一度お試しください。",
        "image_missing": "画像を読み込めませんでした。ページを再読み込みし、画像が出るまで回答しないでください。",
        "language": "言語",
    },
}


def choose_language(*wishes: str | None) -> str:
    """The first language among the wishes that the pages speak; English if there is none.

    Args:
        wishes: language tags, or ``Accept-Language`` headers, most wanted first.
    """
    for wish in wishes:
        for tag in (wish or "").split(","):
            language = tag.split(";")[0].strip().lower().split("-")[0]
            if language in LANGUAGES:
                return language
    return "en"
