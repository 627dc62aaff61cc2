"""The words of the sample grammar, English and Chinese side by side: data only.

A row is `English|Chinese|...`; the English of the first column names the concept in a derivation, whatever the language of the text.
"""

NAMES = {
    "f": "Anna|秀英 Beth|丽华 Clara|小芳 Diana|雪梅 Emma|玉兰 Fiona|春燕 Grace|淑珍 Helen|海伦",
    "m": "Adam|志强 Ben|国庆 Carl|建军 David|大伟 Eric|子轩 Frank|浩然 Jack|小明 Kevin|凯文",
}
FAMILIES = """Adams|王 Baker|李 Carter|张 Davis|刘 Evans|陈 Fisher|杨 Green|赵 Hill|黄 Irving|周 Jones|吴 King|徐 Lewis|孙
    Moore|胡 Nelson|朱 Owen|高 Parker|林 Quinn|何 Reed|郭 Scott|马 Taylor|罗 Turner|梁 Walker|宋 White|郑 Young|谢"""
TRAITS = """a kind|善良的 a clever|聪明的 a busy|忙碌的 a brave|勇敢的 a shy|害羞的 a cheerful|开朗的 a careful|细心的 a famous|有名的
    a lazy|懒惰的 a polite|礼貌的 a strict|严格的 a patient|耐心的 a humorous|幽默的 a lonely|孤独的 a proud|骄傲的 a warm|热情的"""
JOBS = """teacher|教师 doctor|医生 nurse|护士 farmer|农民 driver|司机 painter|画家 writer|作家 singer|歌手 dancer|舞者 lawyer|律师
    cook|厨师 tailor|裁缝 barber|理发师 baker|面包师 soldier|士兵 sailor|水手 pilot|飞行员 reporter|记者 student|学生 scientist|科学家
    clerk|职员 guard|保安 miner|矿工 poet|诗人"""
CITIES = """Beijing|北京 Shanghai|上海 London|伦敦 Paris|巴黎 Berlin|柏林 Rome|罗马 Moscow|莫斯科 Tokyo|东京 Delhi|德里 Cairo|开罗
    Sydney|悉尼 Boston|波士顿 Chicago|芝加哥 Vienna|维也纳 Madrid|马德里 Prague|布拉格 Chengdu|成都 Harbin|哈尔滨 Kunming|昆明
    Nanjing|南京 Lhasa|拉萨 Toronto|多伦多 Dublin|都柏林 Geneva|日内瓦"""
DAYS = "Monday|星期一 Tuesday|星期二 Wednesday|星期三 Thursday|星期四 Friday|星期五 Saturday|星期六 Sunday|星期日"
TIMES = "early morning|清晨, late morning|上午, early afternoon|午后, late afternoon|下午, evening|傍晚, late evening|深夜"
RELATIONS = {
    "f": "sister|姐姐 aunt|姑姑 mother|妈妈 daughter|女儿 niece|侄女",
    "m": "brother|弟弟 uncle|叔叔 father|爸爸 son|儿子 nephew|侄子",
    "any": "friend|朋友 neighbour|邻居 classmate|同学 colleague|同事 cousin|表亲 roommate|室友",
}
TRANSPORT = """by bus|坐公交车, by train|坐火车, by taxi|打车, by bike|骑自行车, on foot|步行, by boat|乘船, by horse|骑马,
    by car|开车"""
PLACE_LOOKS = """new|新开的 old|古老的 big|宽敞的 tiny|狭小的 quiet|安静的 noisy|喧闹的 famous|著名的 pretty|漂亮的 distant|远处的
    nearby|附近的 popular|热门的 clean|干净的 crowded|拥挤的 modern|现代的 simple|简朴的 secret|神秘的"""
SEASONS = "spring|春天 summer|夏天 autumn|秋天 winter|冬天"
WEATHER = """rain was falling|下着雨, the sun was shining|阳光明媚, a wind was blowing|刮着大风, fog lay everywhere|大雾弥漫,
    snow was falling|雪花飘飘, the heat was terrible|天气炎热, dark clouds hung low|乌云密布, frost covered everything|霜冻很重"""
WEATHER_OF = {"spring": (0, 1, 2, 3), "summer": (0, 1, 5, 6), "autumn": (0, 2, 3, 6), "winter": (1, 2, 4, 7)}
"""Season -> the rows of WEATHER it can have."""
GEAR = (
    "carried a|umbrella|撑着一把|雨伞, wore a|raincoat|穿着一件|雨衣, held a|newspaper|顶着一张|报纸, put on a|rain hat|戴着一顶|斗笠",
    "wore a|sun hat|戴着一顶|草帽, carried a|parasol|打着一把|阳伞, put on a|pair of sunglasses|戴着一副|墨镜, wore a|shirt|穿着一件|衬衫",
    "wore a|windbreaker|穿着一件|风衣, wound on a|headscarf|系着一条|头巾, wore a|jacket|穿着一件|夹克, flew a|kite|放着一只|风筝",
    "carried a|lantern|提着一盏|灯笼, held a|torch|拿着一支|手电, wore a|mask|戴着一个|口罩, wore a|vest|穿着一件|背心",
    "wore a|cotton coat|穿着一件|棉袄, pulled a|sledge|拉着一架|雪橇, wore a|pair of boots|穿着一双|靴子, wore a|scarf|围着一条|围巾",
    "waved a|fan|摇着一把|扇子, carried a|flask|背着一个|水壶, wore a|swimsuit|穿着一套|泳衣, used a|towel|搭着一条|毛巾",
    "wore a|sweater|穿着一件|毛衣, carried a|tent|背着一顶|帐篷, wore a|hood|戴着一个|兜帽, brought a|lamp|带着一盏|台灯",
    "wore a|pair of gloves|戴着一双|手套, wore a|fur cap|戴着一顶|皮帽, wore a|blanket|披着一条|毯子, held a|hand warmer|抱着一只|暖炉",
)
"""In the order of WEATHER: English verb, thing, Chinese verb with measure word, thing."""
SHELTERS = (
    "waited in a cave|躲进山洞, hid under a bridge|躲到桥下, ran into a shop|跑进商店, stood in a doorway|站在门口",
    "lay on the grass|躺在草地上, sat by the river|坐在河边, climbed a hill|爬上小山, took off their shoes|脱掉鞋子",
    "held on to a tree|抱住大树, leaned on a wall|靠着墙壁, ran after their hats|追赶帽子, closed the windows|关上窗户",
    "walked hand in hand|手拉着手, followed a dog|跟着小狗, lost their way|迷了路, called each other|互相呼喊",
    "built a snowman|堆起雪人, threw snowballs|打起雪仗, lit a fire|点起火堆, swept the steps|清扫台阶",
    "looked for shade|寻找树荫, jumped into a pool|跳进水池, fanned themselves|扇着扇子, asked for ice|要来冰块",
    "looked at the sky|望着天空, hurried on|加快脚步, packed their bags|收拾背包, turned on the lights|打开电灯",
    "stamped their feet|跺着双脚, rubbed their hands|搓着双手, slid on the ice|在冰上滑行, huddled together|挤在一起",
)
"""In the order of WEATHER: what people do in it."""
COLOURS = (
    "red|红色 blue|蓝色 green|绿色 yellow|黄色 black|黑色 white|白色 grey|灰色 brown|棕色 pink|粉色 purple|紫色 golden|金色 silver|银色"
)
PLACES = {
    "fruit market": "apples|苹果|个 pears|梨子|个 melons|西瓜|个 bananas|香蕉|根 grapes|葡萄|串 peaches|桃子|个",
    "bookshop": "novels|小说|本 maps|地图|张 diaries|日记|本 magazines|杂志|份 dictionaries|词典|部 postcards|明信片|张",
    "flower shop": "roses|玫瑰|朵 lilies|百合|枝 orchids|兰花|盆 tulips|郁金香|朵 seedlings|树苗|棵 vases|花瓶|只",
    "toy shop": "dolls|娃娃|个 balls|皮球|个 puzzles|拼图|副 drums|小鼓|面 robots|机器人|台 balloons|气球|只",
    "bakery": "cakes|蛋糕|块 loaves|面包|条 biscuits|饼干|包 pies|馅饼|张 doughnuts|甜甜圈|个 rolls|花卷|个",
    "clothes shop": "skirts|裙子|条 trousers|裤子|条 shirts|上衣|件 socks|袜子|双 ties|领带|条 gowns|礼服|套",
    "stationer": "pencils|铅笔|支 rulers|尺子|把 notebooks|笔记本|个 brushes|毛笔|支 erasers|橡皮|块 envelopes|信封|个",
    "furniture shop": "chairs|椅子|把 tables|桌子|张 beds|木床|张 mirrors|镜子|面 clocks|闹钟|座 shelves|书架|个",
    "fish market": "carp|鲤鱼|条 crabs|螃蟹|只 shrimps|大虾|只 turtles|乌龟|只 eels|鳗鱼|条 oysters|牡蛎|只",
    "farm": "chickens|小鸡|只 cows|奶牛|头 sheep|绵羊|只 ducks|鸭子|只 horses|骏马|匹 pigs|肥猪|头",
    "tea house": "teapots|茶壶|把 cups|茶杯|只 bowls|瓷碗|只 tea bags|茶包|袋 trays|托盘|个 spoons|勺子|把",
    "music shop": "violins|小提琴|把 flutes|笛子|支 guitars|吉他|把 pianos|钢琴|架 records|唱片|张 trumpets|喇叭|个",
}
PLACE_NAMES = """fruit market|水果市场, bookshop|书店, flower shop|花店, toy shop|玩具店, bakery|面包房, clothes shop|服装店,
    stationer|文具店, furniture shop|家具城, fish market|鱼市, farm|农场, tea house|茶馆, music shop|琴行"""
ITEM_LOOKS = """cheap|便宜的 dear|昂贵的 beautiful|美丽的 ordinary|普通的 large|大大的 little|小小的 curious|奇怪的 excellent|上好的
    rare|罕见的 lovely|可爱的 heavy|沉重的 fine|精致的 local|本地的 foreign|外国的 odd|古怪的 special|特别的"""
COUNTS = (
    "one|一 two|两 three|三 four|四 five|五 six|六 seven|七 eight|八 nine|九 ten|十 eleven|十一 twelve|十二 thirteen|十三 fourteen|十四"
)
RECIPIENTS = """grandmother|奶奶 grandfather|爷爷 teacher|老师 boss|老板 coach|教练 captain|队长 dentist|牙医 guest|客人"""
REACTIONS = """laughed|笑了 cried|哭了 danced|跳起舞 sang|唱起歌 clapped|鼓掌 nodded|点头 blushed|脸红了 jumped|跳起来
    bowed|鞠躬 shouted|大叫 whistled|吹口哨 winked|眨眨眼"""
SIGHTS = {
    "park": "fed the pigeons|喂鸽子, rode the swings|荡秋千, played chess|下象棋, planted a tree|种树",
    "lake": "rowed a boat|划船, caught frogs|捉青蛙, skipped stones|打水漂, watched swans|看天鹅",
    "museum": "studied the swords|研究宝剑, copied a painting|临摹油画, asked the guide|请教讲解员, admired the jade|欣赏玉器",
    "temple": "burned incense|烧香, rang the bell|敲钟, read the sutras|念经, drew a lot|求签",
    "zoo": "watched the pandas|看熊猫, teased the monkeys|逗猴子, fed the giraffes|喂长颈鹿, rode an elephant|骑大象",
    "theatre": "saw a play|看话剧, heard an opera|听歌剧, met an actor|见演员, learned magic|学魔术",
    "school": "flew a drone|放无人机, ran a race|赛跑, solved a riddle|猜谜语, wrote poems|写诗",
    "station": "counted trains|数火车, met a stranger|遇见陌生人, bought tickets|买车票, carried luggage|搬行李",
    "beach": "gathered shells|捡贝壳, built a castle|堆沙堡, swam a mile|游泳, dug for clams|挖蛤蜊",
    "hill": "picked mushrooms|采蘑菇, dug up ginseng|挖人参, chased rabbits|追兔子, photographed eagles|拍老鹰",
    "stadium": "played football|踢足球, practised archery|练射箭, lifted weights|举重, cheered the team|为球队加油",
    "castle": "explored the tower|探索塔楼, guarded the gate|守城门, searched for gold|寻找黄金, drew the ruins|画废墟",
}
SIGHT_NAMES = """park|公园 lake|湖泊 museum|博物馆 temple|寺庙 zoo|动物园 theatre|剧院 school|学校 station|车站 beach|海滩 hill|山坡
    stadium|体育场 castle|城堡"""
MANNERS = """quietly|静静地 happily|高兴地 slowly|慢慢地 quickly|飞快地 gladly|乐意地 carefully|小心地 secretly|偷偷地 bravely|大胆地
    calmly|平静地 eagerly|急切地 proudly|自豪地 clumsily|笨拙地 gently|轻轻地 seriously|认真地 wildly|疯狂地 together|一起"""
DISHES = {
    "spring": "spring rolls|春卷, bamboo shoots|竹笋, fried eggs|煎蛋, leek pancakes|韭菜饼, bean soup|豆汤, steamed chicken|蒸鸡",
    "summer": "cold noodles|凉面, cucumber salad|黄瓜沙拉, rice jelly|凉粉, tomato soup|番茄汤, grilled fish|烤鱼, tofu|豆腐",
    "autumn": "crab buns|蟹黄包, roast duck|烤鸭, chestnuts|栗子, pumpkin rice|南瓜饭, corn bread|玉米饼, taro|芋头",
    "winter": "dumplings|饺子, hot pot|火锅, mutton soup|羊肉汤, baked potatoes|烤土豆, bacon|腊肉, cabbage stew|炖白菜",
}
DRINKS = """green tea|绿茶, black coffee|咖啡, milk|牛奶, orange juice|橙汁, red wine|红酒, beer|啤酒, lemonade|柠檬水, cola|可乐,
    cocoa|可可, soy milk|豆浆, honey water|蜂蜜水, plum juice|酸梅汤"""
MOODS = """happy|快乐 tired|疲倦 satisfied|满足 hopeful|充满希望 sad|悲伤 peaceful|安宁 excited|激动 bored|无聊 grateful|感激 worried|担心
    dizzy|头晕 sleepy|困倦 angry|生气 relaxed|轻松 nervous|紧张 lucky|幸运"""
PRONOUNS = {
    "en": {"she": ("she", "he"), "She": ("She", "He"), "her": ("her", "his"), "Her": ("Her", "His"), "him": ("her", "him")},
    "zh": {"she": ("她", "他"), "they": ("她们", "他们")},
}

# In Chinese, words that come back (names, transport, recipients) stand before punctuation: without spaces, a byte-pair encoding would melt
# them with whatever follows, and a word that is spelled by other tokens the second time cannot be copied.
PATTERNS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "who": (
            "{hero} {family} was {trait} {job} from {city}.",
            "In {city} there lived {trait} {job} called {hero} {family}.",
            "This is the story of {hero} {family}, {trait} {job} in {city}.",
        ),
        "go": (
            "On {day} {she} went {transport} to the {place_look} {place} in the {time:go_time} with {her:she} {relation} {hero:companion}.",
            "{She:she} and {her:she} {relation} {hero:companion} went {transport} to the {place_look} {place} on {day} {time:go_time}.",
            "{Her:she} {relation} {hero:companion} took {him:she} {transport} to the {place_look} {place} on {day} in the {time:go_time}.",
        ),
        "weather": (
            "It was {season} and {weather}, so {she} {take:gear} {colour} {gear}.",
            "{She:she} {take:gear} {colour} {gear}, because it was {season} and {weather}.",
        ),
        "buy": (
            "There {she} bought {count:bought} {item_look} {item} for {her:she} {recipient}.",
            "For {her:she} {recipient}, {she} chose {count:bought} {item_look} {item}.",
        ),
        "share": (
            "{hero:companion} bought {count:added} more, so they had {count:total} {item} together.",
            "With the {count:added} that {hero:companion} found, there were {count:total} {item} in all.",
        ),
        "change": (
            "By the {time:change_time} {weather:next_weather}, so they {shelter}.",
            "They {shelter} in the {time:change_time}, because now {weather:next_weather}.",
        ),
        "visit": (
            "In the {time:visit_time} they came to the {sight} and {manner} {activity}.",
            "Then they {manner} {activity} at the {sight} until the {time:visit_time}.",
        ),
        "meal": (
            "{hero:companion} was hungry, so they ate {dish} and drank {drink}.",
            "{hero} ordered {dish} and {hero:companion} asked for {drink}.",
        ),
        "home": (
            "In the {time:home_time} {she} went home {transport}, {mood}.",
            "{She:she} said goodbye to {hero:companion} in the {time:home_time} and went home {transport}, {mood}.",
            "{hero} and {hero:companion} took the {gear} home {transport} in the {time:home_time}, {mood}.",
        ),
        "give": (
            "At home {she} gave {count:given} to {her:she} {recipient}, who {reaction}, and {count:left} {item} were left.",
            "{Her:she} {recipient} got {count:given} of them and {reaction}, so {she} kept {count:left} {item}.",
        ),
    },
    "zh": {
        "who": (
            "{family}{hero}，是{city}的一位{trait}{job}。",
            "{city}有一位{trait}{job}，名叫{family}{hero}。",
            "{family}{hero}，住在{city}，是一位{trait}{job}。",
        ),
        "go": (
            "{day}{time:go_time}，{she}和{relation}{hero:companion}，{transport}，去{place_look}{place}。",
            "{she}和{relation}{hero:companion}，{day}{time:go_time}，{transport}，去{place_look}{place}。",
            "{relation}{hero:companion}，{day}{time:go_time}带{she}，{transport}，去{place_look}{place}。",
        ),
        "weather": (
            "{season}{weather}，{she}{take:gear}{colour}{gear}。",
            "{she}{take:gear}{colour}{gear}，因为{season}{weather}。",
        ),
        "buy": (
            "为了{recipient}，{she}买了{count:bought}{unit:item}{item_look}{item}。",
            "{she}挑了{count:bought}{unit:item}{item_look}{item}，送给{recipient}。",
        ),
        "share": (
            "多亏{hero:companion}，又有{count:added}{unit:item}，{they}共有{count:total}{unit:item}{item}。",
            "加上{hero:companion}，再买{count:added}{unit:item}，一共{count:total}{unit:item}{item}。",
        ),
        "change": (
            "到了{time:change_time}，{weather:next_weather}，{they}{shelter}。",
            "{they}{time:change_time}{shelter}，因为{weather:next_weather}。",
        ),
        "visit": (
            "{time:visit_time}，{they}在{sight}，{manner}{activity}。",
            "后来{they}在{sight}，{manner}{activity}，直到{time:visit_time}。",
        ),
        "meal": (
            "为了{hero:companion}，{they}吃{dish}，喝{drink}。",
            "点{dish}的是{hero}，要{drink}的是{hero:companion}。",
        ),
        "home": (
            "{time:home_time}回家，{transport}，{she}心里{mood}。",
            "{time:home_time}，{she}告别{hero:companion}，{transport}，觉得{mood}。",
            "{time:home_time}，收好{gear}，{hero}和{hero:companion}，{transport}，感到{mood}。",
        ),
        "give": (
            "礼物送给{recipient}，是{count:given}{unit:item}，对方{reaction}，还剩{count:left}{unit:item}{item}。",
            "收到{count:given}{unit:item}的是{recipient}，{reaction}，{she}还有{count:left}{unit:item}{item}。",
        ),
    },
}
"""Language -> sentence -> one pattern per form, the same number in each language; see grammar.Sentence."""
