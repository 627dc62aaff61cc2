"""Page furniture goes by whole lines; prose that mentions it stays."""

import pytest

from zhlm.text.boilerplate import boilerplate_places, without_boilerplate

FURNITURE = [
    "首页",
    "上一页 下一页",
    "首页 > 联系我们",
    "上一篇：春日游园记",
    "返回顶部",
    "某某公司 版权所有",
    "版权所有 © 2020-2024 某某网",
    "©2023 某某科技有限公司",
    "Copyright (c) 2019 Example Inc. All rights reserved.",
    "京ICP备12345678号-1",
    "京公网安备 11010802012345号",
    "分享到：微信 微博 QQ空间",
    "扫一扫关注我们的公众号",
    "登录后才能评论",
    "责任编辑：王小明",
    "本网站使用 Cookie 以改善体验。",
    "We use cookies to improve your experience.",
    "Home | About us | Contact us",
    "Skip to content",
    "Sign in",
    "Read more",
    "Share on Facebook",
    "All rights reserved.",
    "　　查看更多",
]
PROSE = [
    "首页改版以后，访问量翻了一番。",
    "下一页的内容更加精彩。",
    "他在登录页面上停了很久。",
    "分享到最后，大家都哭了。",
    "版本升级说明",
    "京城的秋天最美。",
    "Home is where the heart is.",
    "Next, we define a function.",
    "Share your toys with others.",
    "责任编辑是一种职业。",
    "- 首页",
    "这本书版权所有者不详。",
    "Copyrights last for decades.",
    "上下求索",
    "We use cookie cutters.",
]


@pytest.mark.parametrize("line", FURNITURE)
def test_furniture_is_removed_and_nothing_else(line: str) -> None:
    assert without_boilerplate(line) == ""
    assert without_boilerplate(f"春眠不觉晓，\n{line}\n{line}\n处处闻啼鸟。") == "春眠不觉晓，\n处处闻啼鸟。"
    assert boilerplate_places(f"\n正文\n{line}\n")


@pytest.mark.parametrize("line", PROSE)
def test_prose_stays(line: str) -> None:
    assert without_boilerplate(line) == line
    assert without_boilerplate(f"第一行\n{line}\n最后一行") == f"第一行\n{line}\n最后一行"
