"""Page furniture: lines of Chinese and English web pages that belong to the page and not to its text. Only whole lines go.

Each line of the lists is a regular expression for a whole line, spaces around it aside. Kept to what no author writes as a line of prose.
"""

import re

# Lines known by how they begin: the fast search looks at the first character, which _FIRST collects by hand.
_PROVINCES = "京津沪渝冀晋蒙辽吉黑苏浙皖闽赣鲁豫鄂湘粤桂琼川贵云藏陕甘青宁新"
_ITEM = (
    "首页|首頁|网站首页|上一页|下一页|上一頁|下一頁|上一章|下一章|上一篇|下一篇|返回首页|返回顶部|回到顶部|返回目录|返回列表|返回上一页|返回頂部|"
    "网站地图|网站导航|联系我们|聯絡我們|关于我们|關於我們|加入收藏|设为首页|加入书签|登录|登入|注册|註冊|立即注册|忘记密码|免责声明|隐私政策|隱私政策|"
    "服务条款|友情链接|广告服务|意见反馈|帮助中心|我的订单|购物车|查看更多|阅读更多|阅读全文|阅读原文|点击查看更多|展开全文|收起|"
    "(?i:home|next(?: page)?|previous(?: page)?|back to top|skip to (?:main )?content|log ?in|log ?out|sign ?(?:in|up)|register|"
    "read more|site ?map|all rights reserved\\.?|contact us|about us|privacy policy|"
    "terms of (?:use|service)|cookie (?:policy|settings)|subscribe|share|tweet)"
)
_STARTING = (
    rf"(?:{_ITEM})(?:[ \t]*(?:[|\uff5c/>»·•]|[ \t])[ \t]*(?:{_ITEM}))*",  # alone, or a bar: home | about us | contact us
    "(?:上一[页篇章]|下一[页篇章])[:：][^\n]{0,60}",
    "(?:©|(?i:copyright\\b|\\(c\\) ?(?:19|20)))[^\n]{0,120}",
    "版[权權]所有[^\n]{0,80}",
    f"(?:[{_PROVINCES}] ?(?:ICP|公网安)|(?:ICP备案|备案)[号编])[^\n]{{0,60}}",
    "分享(?:到|至)?[:：]?(?:[ 、|/]*(?:微信|朋友圈|微博|新浪微博|QQ空间|QQ好友|QQ|豆瓣|Facebook|Twitter|LINE))*",
    "(?:微信)?扫一扫[^\n]{0,20}(?:关注|分享|下载|二维码)[^\n]{0,20}",
    "(?:请先?|您需要|需要)?(?:登录|登入|注册)后?(?:才?(?:可以?|能)|再|方可)?(?:发表|查看|参与|进行)?(?:评论|回复|回帖|全文|更多)",
    "(?:责任编辑|責任編輯|责编)[:： ][^\n]{1,20}",
    "(?:本网站|本站|我们)使用 ?[Cc]ookies?[^\n]{0,160}",
    "(?i:(?:this|our) (?:web)?site uses cookies|we use cookies|by (?:using|continuing to use) (?:this|our) (?:web)?site)[^\n]{0,240}",
    "(?i:share (?:this|on|to|via)(?: (?:facebook|twitter|x|linkedin|email|whatsapp|page|article|post|story))*)",
)
_FIRST = f"首网上下返回联聯关關加设登注註立忘免隐隱服友广意帮我购查阅点展收分微扫请您需责責本版备I©({_PROVINCES}HhNnPpBbSsLlRrCcAaTtWwOo"
# Lines known by how they end; what comes before is the owner's name.
_ENDING = ("版权所有", "版權所有")

_BLANK = "[ \t\u3000]*"
_STARTS = rf"\n{_BLANK}(?=[{_FIRST}])(?:{'|'.join(_STARTING)}){_BLANK}(?=\n)"
_START = re.compile(_STARTS)  # the line feed in front is what makes the search fast
_LINE = re.compile(rf"{_STARTS}|\n[^\n]{{0,80}}?(?:{'|'.join(_ENDING)}){_BLANK}(?=\n)")


def boilerplate_places(lines: str) -> list[int]:
    """Where there may be boilerplate lines in a text that begins and ends with a line feed: a position in each, or the one before it."""
    places = [m.start() for m in _START.finditer(lines)]
    for ending in _ENDING:
        place = lines.find(ending)
        while place >= 0:
            places.append(place)
            place = lines.find(ending, place + 1)
    return places


def without_boilerplate(text: str) -> str:
    """The text without the lines that are page furniture; empty when it is nothing else."""
    lines = f"\n{text}\n"
    if not _START.search(lines) and not any(ending in text for ending in _ENDING):
        return text
    left = _LINE.sub("", lines)
    return text if left == lines else left.strip("\n")
