//! All layers and heads at a glance, and one head's attention on a text at a click: of one model, or of two compared.
//!
//! The map's number for a head is the share of its attention that falls on tokens of one kind of fact
//! (such as the name), mean over the texts; for two models it is large minus small. The text below is coloured by the head chosen.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::head_views::{Model, Sheet, View, encoded};
use super::html::escape;
use super::panel::{Panel, Scale, Tone};
use super::picture::{SCRIPT, STYLE, page, signed_bar, stamped, title_name, unused_file_name};
use super::plot::HeatMap;
use super::table::Table;
use super::text_picture::footer;
use crate::attention::{Attended, Per};
use crate::contrast::Contrast;
use crate::corpus::Span;
use crate::error::{Error, Result};
use crate::files::write_text;
use crate::text::tame;

/// A map of all heads, ready to be shown.
///
/// ```
/// use cluescope::attention::{Attend, Per, Probes};
/// use cluescope::contrast::{Contrasting, ModelPair};
/// use cluescope::report::HeadsPicture;
/// # fn example(pair: &ModelPair, people: &cluescope::corpus::Corpus) -> cluescope::Result<()> {
/// let attended = pair.small.attend(&people.documents, &Attend::new().per(Per::Head).probes(Probes::All))?;
/// HeadsPicture::new(&attended, &attended.texts[0].id, "name")?.write("heads.html")?;
/// let contrast = pair.contrast_with(people, &Contrasting::new().per(Per::Head))?;
/// HeadsPicture::of_contrast(&contrast, &contrast.texts[0].id, "name")?.write("heads-contrast.html")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct HeadsPicture {
    title: String,
    about: String,
    /// What a map's number is, for legends and axes.
    measure: String,
    signed: bool,
    maps: Vec<Map>,
    views: Vec<View>,
    /// The text shown below the maps.
    text: Panel,
    footer: String,
}

/// The heads of one model, or of two of one shape.
#[derive(Debug, Clone)]
struct Map {
    /// Which model's heads they are, where there are two maps: `large` or `small`.
    role: &'static str,
    name: String,
    /// The head line of its figure.
    title: String,
    layers: usize,
    heads: usize,
}

impl HeadsPicture {
    /// The heads of a model whose attention was measured with [`Per::Head`]; `id` names the text shown below
    /// the map and `kind` the facts whose share the map shows.
    ///
    /// # Errors
    /// [`Error::Option`] when heads were not kept apart, or the text is not there.
    pub fn new(attended: &Attended, id: &str, kind: &str) -> Result<Self> {
        check(attended.per, "Attend")?;
        let text = attended.texts.iter().find(|t| t.id == id).ok_or_else(|| {
            Error::option("id", id, format!("the id of one of the {} texts", attended.texts.len()))
        })?;
        let shape = (attended.layers, attended.heads);
        let views = measures(&text.spans, kind).into_iter().filter_map(|field| {
            let shown = Sheet::of_attended(text, field)?;
            let view = || View::of_one(view_name(field), &Sheet::all(attended, field), &shown, kind);
            Some(shown.check(id, shape).map(|()| view()))
        });
        let (name, kind) = (title_name(&attended.model), tame(kind));
        Ok(HeadsPicture {
            title: format!("Heads of {name}"),
            about: format!("Share of each head's attention on tokens of {kind}, mean over the texts."),
            measure: format!("share of attention on tokens of {kind}"),
            signed: false,
            maps: vec![Map {
                role: "",
                name: name.into(),
                title: format!("Heads of {name}"),
                layers: attended.layers,
                heads: attended.heads,
            }],
            views: views.collect::<Result<_>>()?,
            text: Panel::without_values(&text.id, &text.text, &text.offsets),
            footer: footer(&attended.provenance),
        })
    }

    /// Which heads differ: large minus small, for a contrast measured with [`Per::Head`].
    ///
    /// Where both models have the same numbers of layers and heads, each head is set against the one at the same place in
    /// the other. Otherwise none belong together, and each head of either model is set against the mean over all heads of the
    /// other.
    ///
    /// # Errors
    /// As [`HeadsPicture::new`].
    pub fn of_contrast(contrast: &Contrast, id: &str, kind: &str) -> Result<Self> {
        check(contrast.per, "Contrasting")?;
        let text = contrast.text(id)?;
        let same = contrast.large_shape == contrast.small_shape;
        let views = measures(&text.spans, kind).into_iter().filter_map(|field| {
            let large = Model::of(contrast, text, field, true)?;
            let small = Model::of(contrast, text, field, false)?;
            let view = if same { View::of_same_shape } else { View::of_two_shapes };
            let fit = large.shown.check(id, contrast.large_shape);
            let fit = fit.and_then(|()| small.shown.check(id, contrast.small_shape));
            Some(fit.map(|()| view(view_name(field), &large, &small, kind)))
        });
        let (large, small, kind) = (title_name(&contrast.large), title_name(&contrast.small), tame(kind));
        let map = |role, name: String, title, (layers, heads)| Map { role, name, title, layers, heads };
        let (maps, rule) = if same {
            let name = format!("{large} minus {small}");
            let map = map("", name.clone(), name, contrast.large_shape);
            (vec![map], "each head of the large model minus the head at the same place in the small one")
        } else {
            let maps = vec![
                map(
                    "large",
                    format!("{large} (large)"),
                    format!("Heads of {large} minus the mean of {small}"),
                    contrast.large_shape,
                ),
                map(
                    "small",
                    format!("{small} (small)"),
                    format!("Mean of {large} minus heads of {small}"),
                    contrast.small_shape,
                ),
            ];
            (
                maps,
                "the models differ in shape, so each head is set against the mean over all heads of the other model",
            )
        };
        Ok(HeadsPicture {
            title: format!("Heads of {large} against {small}"),
            about: format!(
                "Share of attention on tokens of {kind}, large minus small, mean over the texts: {rule}. Orange: the large model attends more; blue: the small one."
            ),
            measure: format!("share of attention on tokens of {kind}, large minus small"),
            signed: true,
            maps,
            views: views.collect::<Result<_>>()?,
            text: Panel::without_values(&text.id, &text.text, &text.offsets),
            footer: footer(&contrast.provenance),
        })
    }

    /// A part of a page, with its own style and script; needs no network.
    pub fn fragment(&self) -> String {
        let mut out = format!(
            "<div class=\"cs cs-heads\"><style>{STYLE}{GRID}</style>\n<h2>{}</h2>\n\
             <p>{} Choose a head with the pointer or the arrow keys to see what it attends to in the text below; a row is a layer, from the input down.</p>\n\
             <p><label>Attention: <select>",
            escape(&tame(&self.title)),
            escape(&tame(&self.about))
        );
        for view in &self.views {
            out.push_str(&format!("<option>{}</option>", escape(&tame(&view.name))));
        }
        let bar = if self.signed {
            signed_bar()
        } else {
            "<span class=\"bar\" role=\"img\" aria-label=\"pale to orange\" style=\"background:linear-gradient(90deg,transparent,var(--pos))\"></span>".into()
        };
        out.push_str(&format!(
            "</select></label></p>\n<div class=\"scale\"><span class=\"low\"></span>{bar}<span class=\"high\"></span></div>\n<div class=\"maps\">\n"
        ));
        let mut first = 0;
        for map in &self.maps {
            self.write_map(map, first, &mut out);
            first += map.layers * map.heads;
        }
        out.push_str("</div>\n<p class=\"said\"></p>\n");
        let pieces = self.text.listbox(Tone::Signed, Scale::Fixed(1.0), &|_| String::new(), &mut out);
        let tokens: Vec<String> = pieces
            .iter()
            .map(|tokens| tokens.iter().map(usize::to_string).collect::<Vec<_>>().join(" "))
            .collect();
        out.push_str(&format!("<div hidden class=\"pieces\" data-tokens=\"{}\"></div>\n", tokens.join(",")));
        for view in &self.views {
            self.write_view(view, &mut out);
        }
        out.push_str(&format!(
            "<p class=\"bare\">The map needs a notebook that was run or is trusted.</p>\n<footer>{}</footer>\n<script>{SCRIPT}{CHOOSE}</script></div>\n",
            escape(&self.footer)
        ));
        out
    }

    /// Heads that a terminal lists.
    const STRONGEST: usize = 10;

    /// The heads that attend most to the chosen kind, or whose attention to it differs most, for each measure, as text.
    pub fn terminal(&self) -> String {
        let mut out = format!("{}: {}\n", tame(&self.title), self.measure);
        let two = self.maps.len() > 1;
        let mut columns = vec!["layer", "head"];
        if two {
            columns.insert(0, "model");
        }
        columns.extend(if self.signed { &["large", "small", "difference"][..] } else { &["share"] });
        for view in &self.views {
            let mut order: Vec<usize> = (0..view.cells.len()).collect();
            order.sort_by(|&a, &b| view.value(b).abs().total_cmp(&view.value(a).abs()));
            let rows = order.into_iter().take(Self::STRONGEST).map(|cell| {
                let (map, layer, head) = self.place(cell);
                let mut row = vec![layer.to_string(), head.to_string()];
                if two {
                    row.insert(0, map.role.into());
                }
                let (of, minus) = view.cells[cell];
                row.push(percent(view.shares[of]));
                if let Some(minus) = minus {
                    row.extend([percent(view.shares[minus]), points(view.value(cell))]);
                }
                row
            });
            let columns = columns.iter().map(|name| name.to_string()).collect();
            out.push_str(&format!("\n{}", Table::of(columns, rows.collect()).caption(tame(&view.name))));
        }
        if two {
            out.push_str("\nBeside a head's share stands the mean over all heads of the other model.\n");
        }
        out
    }

    /// A whole page.
    pub fn html(&self) -> String {
        page(&self.title, &self.fragment())
    }

    /// Writes [`HeadsPicture::html`].
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        write_text(path, &self.html())
    }

    /// The maps as figures, a figure a measure and map, each with the name its file would have.
    fn figures(&self) -> Result<Vec<(String, String)>> {
        let mut figures = Vec::new();
        let mut names = BTreeSet::new();
        for view in &self.views {
            let name =
                unused_file_name(view.name.strip_prefix("probe of ").unwrap_or(&view.name), &mut names);
            let mut first = 0;
            for map in &self.maps {
                let value =
                    |layer: usize, head: usize| f64::from(view.value(first + layer * map.heads + head));
                let rows =
                    (0..map.layers).map(|layer| (0..map.heads).map(|head| value(layer, head)).collect());
                let size = |cells: usize| cells as u32;
                let mut figure = HeatMap::new(tame(&format!("{}, {}", map.title, view.name)), rows.collect())
                    .x_label("head")
                    .y_label("layer")
                    .value_label(&self.measure)
                    .size((90 + 26 * size(map.heads)).max(620), (130 + 18 * size(map.layers)).max(240));
                if self.signed {
                    // Two maps of one measure have one scale, or their colours could not be compared.
                    figure = figure.diverging().reach(f64::from(view.scale()));
                }
                let role = if map.role.is_empty() { String::new() } else { format!("-{}", map.role) };
                figures.push((format!("heads-{name}{role}.svg"), stamped(&figure.svg()?, &self.footer)));
                first += map.layers * map.heads;
            }
        }
        Ok(figures)
    }

    /// Writes the maps into `folder` as SVG: `heads-FIELD.svg` for each probe and `heads-received-attention.svg`, or, where two models
    /// differ in shape, `heads-FIELD-large.svg` and `heads-FIELD-small.svg`. Returns the paths.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file, [`Error::Stopped`] when a figure cannot be drawn.
    pub fn write_figures(&self, folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let write = |(name, svg): (String, String)| {
            let path = folder.as_ref().join(name);
            write_text(&path, &svg).map(|()| path)
        };
        self.figures()?.into_iter().map(write).collect()
    }

    /// The map, layer and head of a cell.
    fn place(&self, mut cell: usize) -> (&Map, usize, usize) {
        for map in &self.maps {
            if cell < map.layers * map.heads {
                return (map, cell / map.heads, cell % map.heads);
            }
            cell -= map.layers * map.heads;
        }
        // Each view was checked when it was made.
        unreachable!("a view has one cell a head of its maps")
    }

    /// What is said of a cell.
    fn label(&self, view: &View, cell: usize) -> String {
        let (map, layer, head) = self.place(cell);
        let place = format!("layer {layer}, head {head}");
        let (of, minus) = view.cells[cell];
        let share = percent(view.shares[of]);
        let Some(minus) = minus else { return format!("{place}: {share}") };
        let (other, difference) = (percent(view.shares[minus]), points(view.value(cell)));
        match map.role {
            "large" => format!("{place} of large: {share}, mean of small {other}, difference {difference}"),
            "small" => format!("{place} of small: {other}, mean of large {share}, difference {difference}"),
            _ => format!("{place}: large {share}, small {other}, difference {difference}"),
        }
    }

    fn write_map(&self, map: &Map, first: usize, out: &mut String) {
        let strongest = self.views.first().map_or(0, View::strongest);
        let own = first..first + map.layers * map.heads;
        let stop = if own.contains(&strongest) { strongest } else { first };
        out.push_str(&format!(
            "<div><p>{name}</p><div class=\"grid\" role=\"grid\" aria-label=\"{name}: layers by heads\" data-heads=\"{}\" \
             style=\"grid-template-columns:1.6rem repeat({},minmax(9px,2rem))\">\n<div role=\"row\"><span class=\"no\" role=\"columnheader\" aria-label=\"layer\"></span>",
            map.heads,
            map.heads,
            name = escape(&tame(&map.name))
        ));
        // Two digits need the room of two narrow cells.
        let every = map.heads.div_ceil(16).max(1);
        for head in 0..map.heads {
            let shown = if head % every == 0 { head.to_string() } else { String::new() };
            out.push_str(&format!(
                "<span class=\"no\" role=\"columnheader\" aria-label=\"head {head}\">{shown}</span>"
            ));
        }
        out.push_str("</div>\n");
        for layer in 0..map.layers {
            out.push_str(&format!(
                "<div role=\"row\"><span class=\"no\" role=\"rowheader\" aria-label=\"layer {layer}\">{layer}</span>"
            ));
            for head in 0..map.heads {
                let cell = first + layer * map.heads + head;
                out.push_str(&format!(
                    "<button role=\"gridcell\" tabindex=\"{}\" aria-selected=\"{}\"></button>",
                    if cell == stop { 0 } else { -1 },
                    cell == strongest
                ));
            }
            out.push_str("</div>\n");
        }
        out.push_str("</div></div>\n");
    }

    /// A view's numbers and words for the script.
    fn write_view(&self, view: &View, out: &mut String) {
        let scale = view.scale();
        let join = |each: &dyn Fn(usize) -> String, by: &str| {
            (0..view.cells.len()).map(each).collect::<Vec<_>>().join(by)
        };
        let (low, high) = if self.signed {
            let most = format!("{:.2}", scale * 100.0);
            (
                format!("\u{2212}{most} percentage points: small attends more (blue)"),
                format!("+{most} percentage points: large attends more (orange)"),
            )
        } else {
            ("0 %".into(), percent(scale))
        };
        let rows: Vec<String> = view.rows.iter().map(|row| encoded(row)).collect();
        out.push_str(&format!(
            "<div hidden class=\"view\" data-low=\"{low}\" data-high=\"{high}\" data-colours=\"{}\" data-cells=\"{}\" data-labels=\"{}\" data-rows=\"{}\"></div>\n",
            join(&|cell| format!("{:.0}", view.value(cell) / scale * 100.0), " "),
            join(
                &|cell| match view.cells[cell] {
                    (of, None) => of.to_string(),
                    (of, Some(minus)) => format!("{of} {minus}"),
                },
                ","
            ),
            join(&|cell| self.label(view, cell), "\n"),
            rows.join(" ")
        ));
    }
}

/// Refuses what has no heads apart.
fn check(per: Per, builder: &str) -> Result<()> {
    if per == Per::Head {
        return Ok(());
    }
    Err(Error::option("per", per.name(), format!("head: measure with {builder}::per(Per::Head)")))
}

/// What is shown of a text with these facts: the probe farthest from the start first, the hardest fact and the paper's
/// example; received attention, which has no field, last.
fn measures<'a>(spans: &'a [Span], kind: &str) -> Vec<Option<&'a str>> {
    let mut fields: Vec<Option<&str>> = Vec::new();
    for span in spans.iter().rev().filter(|span| span.field != kind) {
        if !fields.contains(&Some(&span.field)) {
            fields.push(Some(&span.field));
        }
    }
    fields.push(None);
    fields
}

fn view_name(field: Option<&str>) -> String {
    field.map_or("received attention".into(), |field| format!("probe of {field}"))
}

fn percent(share: f32) -> String {
    format!("{:.2} %", share * 100.0)
}

/// A difference of two percentages.
fn points(difference: f32) -> String {
    let size = format!("{:.2}", difference.abs() * 100.0);
    match difference {
        _ if size == "0.00" => format!("{size} points"),
        d if d > 0.0 => format!("+{size} points"),
        _ => format!("\u{2212}{size} points"),
    }
}

const GRID: &str = "
.cs .maps{display:flex;flex-wrap:wrap;gap:.25rem 1.5rem}
.cs .maps>div{min-width:0;max-width:100%}
.cs .grid{display:grid;gap:1px;margin:.25rem 0 .5rem;overflow:auto;justify-content:start;max-height:34rem;padding:3px}
.cs .grid [role=row]{display:contents}
.cs .grid button{all:unset;box-sizing:border-box;height:1.05rem;background:color-mix(in srgb,var(--c,var(--pos)) calc(var(--w,0)*1%),var(--bg));border:1px solid var(--line);cursor:pointer}
.cs .grid button:focus-visible,.cs .grid button[aria-selected=true]{outline:2px solid var(--fg);outline-offset:1px;z-index:1}
.cs .grid .no{font-size:.7rem;color:var(--soft);text-align:center;white-space:nowrap;align-self:center}
.cs .grid [role=columnheader]{position:sticky;top:-3px;background:var(--bg);z-index:2}
.cs select{font:inherit;color:var(--fg);background:var(--bg);border:1px solid var(--soft);border-radius:3px;padding:.1rem .3rem}
";

/// The text's full colour is as in other pictures the value that 19 of 20 tokens do not exceed, but at least a twentieth of the
/// largest: a head may look at one token of thousands, and what it gives the others is noise.
const CHOOSE: &str = r#"
(()=>{for(const root of document.querySelectorAll('.cs-heads:not([data-chosen])')){root.dataset.chosen='1';
const find=s=>root.querySelector(s),numbers=s=>s.split(' ').map(Number);
const decode=s=>{const b=atob(s),row=new Float32Array(b.length/2);for(let i=0;i<row.length;i++){const step=b.charCodeAt(2*i)|b.charCodeAt(2*i+1)<<8;row[i]=step===65535?0:2**(-step/2048)}return row};
const views=[...root.querySelectorAll('.view')].map(v=>({low:v.dataset.low,high:v.dataset.high,colours:numbers(v.dataset.colours),cells:v.dataset.cells.split(',').map(numbers),labels:v.dataset.labels.split('\n'),rows:v.dataset.rows.split(' ')}));
const short=v=>{const s=Math.abs(v);return s===0?'0':s<1e-4?v.toExponential(2):v.toFixed(Math.max(0,2-Math.floor(Math.log10(s))))},signed=v=>(v>0?'+':v<0?'\u2212':'')+short(Math.abs(v));
const cells=[...root.querySelectorAll('[role=gridcell]')],pick=find('select'),of=find('.pieces').dataset.tokens.split(',').map(numbers);
const pieces=[...find('.tx').querySelectorAll('.t')].map((t,i)=>({t,tokens:of[i],words:(t.dataset.note||t.title).split('\n\n').map(n=>n.split('\n',1)[0])}));
let at=cells.findIndex(c=>c.getAttribute('aria-selected')==='true');
const paint=(t,value)=>{t.style.setProperty('--w',Math.abs(value));t.style.setProperty('--c',value<0?'var(--neg)':'var(--pos)')};
const map=()=>{const v=views[pick.selectedIndex];find('.low').textContent=v.low;find('.high').textContent=v.high;
cells.forEach((c,i)=>{paint(c,v.colours[i]);c.title=v.labels[i];c.setAttribute('aria-label',v.labels[i])})};
const choose=(i,focus)=>{const v=views[pick.selectedIndex];cells[at].setAttribute('aria-selected','false');at=i;const cell=cells[at];
for(const c of cell.closest('.grid').querySelectorAll('[tabindex="0"]'))c.tabIndex=-1;
cell.tabIndex=0;cell.setAttribute('aria-selected','true');if(focus)cell.focus();
const [a,b]=v.cells[at].map(r=>decode(v.rows[r])),value=n=>a[n]-(b?b[n]:0),rank=[];
[...a.keys()].sort((x,y)=>value(y)-value(x)).forEach((n,r)=>rank[n]=r);
const known=pieces.map(p=>p.tokens.filter(n=>n<a.length)),strongest=known.map(k=>k.reduce((m,n)=>Math.abs(value(n))>Math.abs(m)?value(n):m,0)),sizes=strongest.map(Math.abs).sort((x,y)=>x-y),most=Math.max(sizes[Math.max(0,Math.ceil(.95*sizes.length)-1)]||0,(sizes[sizes.length-1]||0)/20);
find('.said').textContent=v.labels[at]+' ('+pick.selectedOptions[0].text+'). In the text below the colour is full from '+short(most)+' on.';
pieces.forEach(({t,tokens,words},i)=>{paint(t,most?100*Math.max(-1,Math.min(1,strongest[i]/most)):0);t.classList.toggle('p',strongest[i]>0);t.dataset.r=known[i].length?Math.min(...known[i].map(n=>rank[n])):'';
const note=tokens.map((n,k)=>words[k]+'\ntoken '+n+(n<a.length?', rank '+rank[n]+' of '+a.length+'\n'+(b?'large '+short(a[n])+', small '+short(b[n])+'\ndifference '+signed(value(n)):'weight '+short(a[n])):', after the probe')).join('\n\n');
t.dataset.note=note;t.setAttribute('aria-label',note);t.removeAttribute('title')})};
pick.addEventListener('change',()=>{map();choose(at)});
cells.forEach((c,i)=>c.addEventListener('click',()=>choose(i,true)));
for(const grid of root.querySelectorAll('.grid'))grid.addEventListener('keydown',e=>{const heads=+grid.dataset.heads,own=[...grid.querySelectorAll('[role=gridcell]')],here=own.indexOf(e.target),column=here%heads,row=here-column;
if(here<0)return;let to=null;if(e.key==='ArrowRight')to=column+1<heads?here+1:here;else if(e.key==='ArrowLeft')to=column?here-1:here;else if(e.key==='ArrowDown')to=here+heads;else if(e.key==='ArrowUp')to=here-heads;
else if(e.key==='Home')to=e.ctrlKey?0:row;else if(e.key==='End')to=e.ctrlKey?own.length-1:row+heads-1;else return;
e.preventDefault();if(own[to])choose(cells.indexOf(own[to]),true)});
map();choose(at)}})();
"#;
