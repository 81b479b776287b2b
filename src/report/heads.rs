//! All layers and heads of a model at a glance, and one head's attention on a text at a click.
//!
//! The map's number for a head is the share of its attention that falls on tokens of one kind of fact
//! (such as the name), mean over the texts; the text below is coloured by the head chosen.

use super::html::escape;
use super::picture::{SCRIPT, STYLE, page, short, tame, title_name};
use super::table::Table;
use super::text_picture::footer;
use crate::attention::{Attended, AttendedText, Per};
use crate::error::{Error, Result};
use crate::files::write_text;

/// A map of all heads, ready to be shown.
///
/// ```
/// use cluescope::attention::{Attend, Per, Probes};
/// use cluescope::report::HeadsPicture;
/// # fn example(model: &cluescope::model::Model, people: &cluescope::corpus::Corpus) -> cluescope::Result<()> {
/// let attended = model.attend(&people.documents, &Attend::new().per(Per::Head).probes(Probes::All))?;
/// HeadsPicture::new(&attended, &attended.texts[0].id, "name")?.write("heads.html")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct HeadsPicture {
    model: String,
    kind: String,
    layers: usize,
    heads: usize,
    views: Vec<View>,
    text: AttendedText,
    footer: String,
}

/// One measure: received attention, or a probe's row.
#[derive(Debug, Clone)]
struct View {
    name: String,
    /// One number a head.
    share: Vec<f32>,
    /// Weights of the text shown from token 0 on, one row a head.
    rows: Vec<Vec<f32>>,
}

/// Steps a weight is stored in, relative to its row's largest.
const STEPS: f32 = 9999.0;

impl HeadsPicture {
    /// The heads of a model whose attention was measured with [`Per::Head`]; `id` names the text shown below
    /// the map and `kind` the facts whose share the map shows.
    ///
    /// # Errors
    /// [`Error::Option`] when heads were not kept apart, or the text is not there.
    pub fn new(attended: &Attended, id: &str, kind: &str) -> Result<Self> {
        if attended.per != Per::Head {
            return Err(Error::option(
                "per",
                attended.per.name(),
                "head: measure with Attend::per(Per::Head)",
            ));
        }
        let text = attended.texts.iter().find(|t| t.id == id).ok_or_else(|| {
            Error::option("id", id, format!("the id of one of the {} texts", attended.texts.len()))
        })?;
        let groups = attended.layers * attended.heads;
        let mut views: Vec<View> = Vec::new();
        // The probe farthest from the start comes first: the hardest fact, and the paper's example.
        for span in text.spans.iter().rev() {
            let name = format!("probe of {}", span.field);
            let Some(row) = text.probe.get(&span.field) else { continue };
            if span.field == kind || views.iter().any(|v| v.name == name) {
                continue;
            }
            let rows_of =
                |t: &AttendedText, g: usize| Some(t.probe.get(&span.field)?.weights_by.get(g)?.clone());
            views.push(View {
                name,
                share: shares(&attended.texts, groups, kind, &rows_of),
                rows: row.weights_by.clone(),
            });
        }
        views.push(View {
            name: "received attention".into(),
            share: shares(&attended.texts, groups, kind, &|t, g| t.received_by.get(g).cloned()),
            rows: text.received_by.clone(),
        });
        Ok(HeadsPicture {
            model: title_name(&attended.model).into(),
            kind: kind.into(),
            layers: attended.layers,
            heads: attended.heads,
            views,
            text: text.clone(),
            footer: footer(&attended.provenance),
        })
    }

    /// A part of a page, with its own style and script; needs no network.
    pub fn fragment(&self) -> String {
        let kind = escape(&self.kind);
        let mut out = format!(
            "<div class=\"cs cs-heads\"><style>{STYLE}{GRID}</style>\n<h2>Heads of {}</h2>\n\
             <p>Share of each head's attention on tokens of {kind}, mean over the texts. Choose a head with the pointer or the arrow keys to see what it \
             attends to in the text below; a row is a layer, from the input down.</p>\n<p><label>Attention: <select>",
            escape(&self.model)
        );
        for (number, view) in self.views.iter().enumerate() {
            out.push_str(&format!("<option value=\"{number}\">{}</option>", escape(&view.name)));
        }
        out.push_str("</select></label></p>\n");
        out.push_str(&format!(
            "<div class=\"scale\"><span>0 %</span><span class=\"bar\" role=\"img\" aria-label=\"pale to orange\" style=\"background:linear-gradient(90deg,transparent,var(--pos))\"></span>\
             <span class=\"most\"></span></div>\n<div class=\"grid\" role=\"grid\" aria-label=\"Layers by heads\" style=\"grid-template-columns:2.2rem repeat({},minmax(9px,2rem))\">\n",
            self.heads
        ));
        self.write_cells(&mut out);
        out.push_str("</div>\n<p class=\"said\" aria-live=\"polite\"></p>\n");
        out.push_str(&format!("<div class=\"tx\" aria-label=\"Tokens of {}\">", escape(&self.text.id)));
        self.write_tokens(&mut out);
        out.push_str("</div>\n");
        for view in &self.views {
            out.push_str(&view.data());
        }
        out.push_str(&format!(
            "<p class=\"bare\">The map needs a notebook that was run or is trusted.</p>\n<footer>{}</footer>\n<script>{SCRIPT}{CHOOSE}</script></div>\n",
            escape(&self.footer)
        ));
        out
    }

    /// Heads that a terminal lists.
    const STRONGEST: usize = 10;

    /// The heads that attend most to the chosen kind, for each measure, as text.
    pub fn terminal(&self) -> String {
        let mut out =
            tame(&format!("Heads of {}: share of attention on tokens of {}\n", self.model, self.kind));
        for view in &self.views {
            let mut order: Vec<usize> = (0..view.share.len()).collect();
            order.sort_by(|&a, &b| view.share[b].total_cmp(&view.share[a]));
            let rows = order.into_iter().take(Self::STRONGEST).map(|head| {
                let heads = self.heads.max(1);
                vec![
                    (head / heads).to_string(),
                    (head % heads).to_string(),
                    format!("{} %", short(view.share[head] * 100.0)),
                ]
            });
            let columns = ["layer", "head", "share"].map(String::from).into();
            out.push_str(&format!("\n{}", Table::of(columns, rows.collect()).caption(tame(&view.name))));
        }
        out
    }

    /// A whole page.
    pub fn html(&self) -> String {
        page(&format!("Heads of {}", self.model), &self.fragment())
    }

    /// Writes [`HeadsPicture::html`].
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        write_text(path, &self.html())
    }

    /// The head that attends most to the chosen kind in the first view: where a reader begins.
    fn strongest(&self) -> usize {
        let share = self.views.first().map_or(&[][..], |v| &v.share);
        let best = share.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        best.map_or(0, |(head, _)| head)
    }

    fn write_cells(&self, out: &mut String) {
        let share = self.views.first().map_or(&[][..], |v| &v.share);
        let most = share.iter().copied().fold(0.0f32, f32::max).max(f32::MIN_POSITIVE);
        let strongest = self.strongest();
        for layer in 0..self.layers {
            out.push_str(&format!("<div role=\"row\"><span class=\"no\" role=\"rowheader\">{layer}</span>"));
            for head in 0..self.heads {
                let number = layer * self.heads + head;
                let value = share.get(number).copied().unwrap_or(0.0);
                out.push_str(&format!(
                    "<button role=\"gridcell\" tabindex=\"{}\" style=\"--w:{:.0}\" title=\"layer {layer}, head {head}: {} %\"></button>",
                    if number == strongest { 0 } else { -1 },
                    value / most * 100.0,
                    short(value * 100.0)
                ));
            }
            out.push_str("</div>\n");
        }
        out.push_str("<div role=\"row\"><span class=\"no\" role=\"rowheader\"></span>");
        for head in 0..self.heads {
            out.push_str(&format!("<span class=\"no\" role=\"columnheader\">{head}</span>"));
        }
        out.push_str("</div>\n");
    }

    fn write_tokens(&self, out: &mut String) {
        let characters: Vec<char> = self.text.text.chars().collect();
        let slice = |from: usize, to: usize| escape(&characters[from..to].iter().collect::<String>());
        let mut at = 0;
        for (token, &(start, end)) in self.text.offsets.iter().enumerate() {
            // Tokens that share a character with the one before show what is left of them, or nothing.
            let (start, end) = (start.max(at), end.min(characters.len()));
            if end <= start {
                continue;
            }
            out.push_str(&slice(at, start));
            out.push_str(&format!(
                "<span class=\"t p\" style=\"--w:0\" data-n=\"{token}\">{}</span>",
                slice(start, end)
            ));
            at = end;
        }
        out.push_str(&slice(at, characters.len()));
    }
}

impl View {
    /// The view's numbers for the script.
    fn data(&self) -> String {
        let join = |numbers: Vec<String>| numbers.join(",");
        let most: Vec<f32> = self.rows.iter().map(|row| row.iter().copied().fold(0.0, f32::max)).collect();
        let rows = self.rows.iter().zip(&most).map(|(row, &most)| {
            let steps = row.iter().map(|w| format!("{:.0}", w / most.max(f32::MIN_POSITIVE) * STEPS));
            format!("[{}]", join(steps.collect()))
        });
        format!(
            "<div hidden class=\"view\" data-share=\"[{}]\" data-most=\"[{}]\" data-rows=\"[{}]\"></div>\n",
            join(self.share.iter().map(|s| format!("{s:.6}")).collect()),
            join(most.iter().map(|m| format!("{m:e}")).collect()),
            join(rows.collect())
        )
    }
}

/// The share of each head's attention on tokens of `kind`, mean over the texts that have such tokens.
fn shares(
    texts: &[AttendedText],
    groups: usize,
    kind: &str,
    rows: &dyn Fn(&AttendedText, usize) -> Option<Vec<f32>>,
) -> Vec<f32> {
    let mut sums = vec![0.0f64; groups];
    let mut counts = vec![0u32; groups];
    for text in texts {
        let of_kind: Vec<bool> = text
            .offsets
            .iter()
            .map(|&(from, to)| {
                to > from && text.spans.iter().any(|s| s.field == kind && from < s.end && s.start < to)
            })
            .collect();
        if !of_kind.contains(&true) {
            continue;
        }
        for (group, (sum, count)) in sums.iter_mut().zip(&mut counts).enumerate() {
            let Some(row) = rows(text, group) else { continue };
            let total: f64 = row.iter().map(|&w| f64::from(w)).sum();
            let on: f64 = row.iter().zip(&of_kind).filter(|(_, k)| **k).map(|(&w, _)| f64::from(w)).sum();
            if total > 0.0 {
                *sum += on / total;
                *count += 1;
            }
        }
    }
    sums.iter().zip(&counts).map(|(s, &c)| (s / f64::from(c.max(1))) as f32).collect()
}

const GRID: &str = "
.cs .grid{display:grid;gap:1px;margin:.5rem 0;overflow-x:auto;justify-content:start;max-height:34rem;overflow-y:auto;padding:3px}
.cs .grid [role=row]{display:contents}
.cs .grid button{all:unset;height:1.05rem;background:color-mix(in srgb,var(--pos) calc(var(--w)*1%),var(--bg));border:1px solid var(--line);cursor:pointer}
.cs .grid button:focus-visible,.cs .grid button.on{outline:2px solid var(--fg);outline-offset:1px;z-index:1}
.cs .grid .no{font-size:.7rem;color:var(--soft);text-align:center;overflow:hidden;align-self:center}
.cs select{font:inherit;color:var(--fg);background:var(--bg);border:1px solid var(--soft);border-radius:3px;padding:.1rem .3rem}
";

const CHOOSE: &str = r#"
(()=>{for(const root of document.querySelectorAll('.cs-heads:not([data-chosen])')){root.dataset.chosen='1';
const views=[...root.querySelectorAll('.view')].map(v=>({share:JSON.parse(v.dataset.share),most:JSON.parse(v.dataset.most),rows:JSON.parse(v.dataset.rows)}));
const cells=[...root.querySelectorAll('.grid button')],columns=root.querySelectorAll('[role=columnheader]').length;
const box=root.querySelector('.tx'),tokens=[...box.querySelectorAll('.t')],pick=root.querySelector('select'),said=root.querySelector('.said');
let at=Math.max(0,cells.findIndex(c=>c.tabIndex===0));
const percent=x=>(100*x).toPrecision(3)+' %';
const paintGrid=()=>{const v=views[pick.value],top=Math.max(...v.share,1e-12);root.querySelector('.most').textContent=percent(top);
cells.forEach((c,i)=>{c.style.setProperty('--w',100*v.share[i]/top);c.title='layer '+Math.floor(i/columns)+', head '+i%columns+': '+percent(v.share[i])})};
const choose=(i,focus)=>{const v=views[pick.value];cells[at].tabIndex=-1;cells[at].classList.remove('on');cells[at].removeAttribute('aria-selected');at=i;
cells[at].tabIndex=0;cells[at].classList.add('on');cells[at].setAttribute('aria-selected','true');if(focus)cells[at].focus();
said.textContent=cells[at].title+' of its attention ('+pick.selectedOptions[0].text+'). Below, the deepest colour is '+v.most[at].toPrecision(3)+'.';
const row=v.rows[at]||[],order=row.map((w,i)=>i).sort((a,b)=>row[b]-row[a]),rank=[];order.forEach((t,r)=>rank[t]=r);
for(const t of tokens){const n=+t.dataset.n,has=n<row.length,w=has?row[n]/9999:0;t.style.setProperty('--w',100*w);t.dataset.r=has?rank[n]:1e9;
const note='\u201c'+t.textContent+'\u201d\ntoken '+n+(has?', rank '+rank[n]+'\nweight '+(w*v.most[at]).toPrecision(3):', after the probe');t.dataset.note=note;t.setAttribute('aria-label',note)}};
pick.addEventListener('change',()=>{paintGrid();choose(at)});
cells.forEach((c,i)=>c.addEventListener('click',()=>choose(i,true)));
root.querySelector('.grid').addEventListener('keydown',e=>{const step={ArrowRight:1,ArrowLeft:-1,ArrowDown:columns,ArrowUp:-columns}[e.key];
if(step&&cells[at+step]){e.preventDefault();choose(at+step,true)}});
paintGrid();choose(at)}})();
"#;
