//! One block: attention and MLP on the residual stream, forwards and backwards.

use super::attention::{self, Geometry, Inputs, Slopes};
use super::capture::{Batch, Gather};
use super::config::{DecoderConfig, Residual};
use super::linear::{Gradients, Linear, Work};
use super::mlp;
use super::parameters::{Block, NormWeights};
use super::scratch::{Buffer, add};
use crate::error::Result;

/// What a pass over one batch shares between blocks.
pub(super) struct Pass<'a> {
    pub(super) config: &'a DecoderConfig,
    pub(super) batch: &'a Batch,
    /// Position within its text, per row.
    pub(super) positions: &'a [u32],
    pub(super) work: &'a Work,
}

/// Intermediate values a block's backward pass needs.
#[derive(Debug)]
pub(super) struct Saved {
    /// The block's input, `[N, d]`.
    pub(super) x: Buffer,
    /// The rest, `None` when it is to be computed again.
    pub(super) inner: Option<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    /// After norms and rotation.
    q: Buffer,
    k: Buffer,
    v: Buffer,
    /// Queries and keys before their norms, where they have any.
    plain_qk: Option<(Buffer, Buffer)>,
    /// Mixed values, the input of `o_proj`.
    mixed: Buffer,
    /// `o_proj`'s output, kept where a norm follows.
    attention: Option<Buffer>,
    /// Input of the MLP's norm where it is not the block's own.
    middle: Option<Buffer>,
    gate: Option<Buffer>,
    up: Buffer,
    /// `down_proj`'s output, kept where a norm follows.
    mlp: Option<Buffer>,
}

/// How a block runs.
pub(super) struct Run<'a, 'g> {
    pub(super) layer: usize,
    pub(super) gather: Option<&'a mut Gather<'g>>,
    /// End after capturing attention.
    pub(super) stop: bool,
    /// Keep what the backward pass needs.
    pub(super) save: bool,
}

impl Pass<'_> {
    fn rows(&self) -> usize {
        self.positions.len()
    }

    fn take(&self, width: usize) -> Buffer {
        self.work.pool.take(self.rows() * width)
    }

    pub(super) fn eps(&self) -> f32 {
        self.config.norm_eps as f32
    }

    fn norm(&self, norm: &NormWeights, x: &[f32]) -> Result<Buffer> {
        let mut y = self.work.pool.take(x.len());
        norm.forward(self.eps(), x, &mut y)?;
        Ok(y)
    }

    fn linear(&self, linear: &Linear, x: &[f32]) -> Result<Buffer> {
        let mut y = self.take(linear.rows);
        linear.forward(x, &mut y, false, self.work)?;
        Ok(y)
    }
}

impl Block {
    /// Whether anything in the block is trained.
    pub(super) fn trained(&self) -> bool {
        let linears =
            [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.up_proj, &self.down_proj];
        let pairs = self.qk_norm.iter().chain(&self.post_norms).flat_map(|(a, b)| [a, b]);
        linears.into_iter().chain(&self.gate_proj).any(Linear::trained)
            || [&self.input_norm, &self.mlp_norm].into_iter().chain(pairs).any(NormWeights::trained)
    }

    /// Queries, keys (both rotated and normed) and the two before their norms, where they have any.
    #[allow(clippy::type_complexity)]
    pub(super) fn queries_and_keys(
        &self,
        pass: &Pass<'_>,
        h: &[f32],
        save: bool,
    ) -> Result<(Buffer, Buffer, Option<(Buffer, Buffer)>)> {
        let mut q = pass.linear(&self.q_proj, h)?;
        let mut k = pass.linear(&self.k_proj, h)?;
        let mut plain = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            if save {
                let normed = (pass.norm(q_norm, &q)?, pass.norm(k_norm, &k)?);
                plain = Some((q, k));
                (q, k) = normed;
            } else {
                q_norm.forward_in_place(pass.eps(), &mut q)?;
                k_norm.forward_in_place(pass.eps(), &mut k)?;
            }
        }
        if let Some(rope) = &self.rope {
            rope.rotate(&mut q, pass.config.head_dim, pass.positions, false);
            rope.rotate(&mut k, pass.config.head_dim, pass.positions, false);
        }
        Ok((q, k, plain))
    }

    /// Values of all heads.
    pub(super) fn values(&self, pass: &Pass<'_>, h: &[f32]) -> Result<Buffer> {
        pass.linear(&self.v_proj, h)
    }

    /// Advances the residual stream `x` (`[N, d]`) by one block; returns what the backward pass needs
    /// when asked to. After a stop `x` is left as it was.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        x: &mut Buffer,
        mut run: Run<'_, '_>,
    ) -> Result<Option<Inner>> {
        let geometry = Geometry::new(pass.config, self.window);
        let h = pass.norm(&self.input_norm, x)?;
        let (q, k, plain_qk) = self.queries_and_keys(pass, &h, run.save)?;
        if run.stop {
            let inputs = Inputs { q: &q, k: &k, v: &[] };
            attention::forward(&geometry, pass.batch, inputs, None, run.layer, run.gather.take());
            return Ok(None);
        }
        let v = self.values(pass, &h)?;
        drop(h);
        let mut mixed = pass.take(geometry.heads * geometry.head_dim);
        let inputs = Inputs { q: &q, k: &k, v: &v };
        attention::forward(&geometry, pass.batch, inputs, Some(&mut mixed), run.layer, run.gather.take());
        let mut inner = Parts::default();
        if run.save {
            inner.qkv = Some((q, k, v));
        } else {
            drop((q, k, v));
        }
        self.after_attention(pass, x, &mixed, run.save, &mut inner)?;
        let (Some((q, k, v)), Some(up)) = (inner.qkv, inner.up) else { return Ok(None) };
        Ok(Some(Inner {
            q,
            k,
            v,
            plain_qk,
            mixed,
            attention: inner.attention,
            middle: inner.middle,
            gate: inner.gate,
            up,
            mlp: inner.mlp,
        }))
    }

    /// The block's second part: `o_proj` of the mixed values, and the MLP.
    pub(super) fn after_attention(
        &self,
        pass: &Pass<'_>,
        x: &mut Buffer,
        mixed: &[f32],
        save: bool,
        parts: &mut Parts,
    ) -> Result<()> {
        // In parallel blocks the MLP reads the block's own input, before attention is added to it.
        let parallel = pass.config.residual == Residual::Parallel;
        let early = if parallel { Some(pass.norm(&self.mlp_norm, x)?) } else { None };
        match &self.post_norms {
            Some((norm, _)) => {
                let attention = pass.linear(&self.o_proj, mixed)?;
                let normed = pass.norm(norm, &attention)?;
                add(x, &normed);
                parts.attention = save.then_some(attention);
            }
            None => self.o_proj.forward(mixed, x, true, pass.work)?,
        }
        if save && !parallel {
            let mut middle = pass.work.pool.take(x.len());
            middle.copy_from_slice(x);
            parts.middle = Some(middle);
        }
        let h = match early {
            Some(h) => h,
            None => pass.norm(&self.mlp_norm, x)?,
        };
        let gate = match &self.gate_proj {
            Some(gate) => Some(pass.linear(gate, &h)?),
            None => None,
        };
        let up = pass.linear(&self.up_proj, &h)?;
        drop(h);
        let mut act = pass.take(self.up_proj.rows);
        mlp::forward(pass.config.activation, gate.as_deref(), &up, &mut act);
        if save {
            (parts.gate, parts.up) = (gate, Some(up));
        } else {
            drop((gate, up));
        }
        match &self.post_norms {
            Some((_, norm)) => {
                let mlp = pass.linear(&self.down_proj, &act)?;
                let normed = pass.norm(norm, &mlp)?;
                add(x, &normed);
                parts.mlp = save.then_some(mlp);
            }
            None => self.down_proj.forward(&act, x, true, pass.work)?,
        }
        Ok(())
    }

    /// Turns `dx`, the gradient of the block's output, into that of its input (unless `first`, where
    /// nothing below is trained and `dx` is left undefined), and adds the weights' gradients.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        saved: Saved,
        dx: &mut Buffer,
        first: bool,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Saved { x, inner } = saved;
        let inner = match inner {
            Some(inner) => inner,
            None => {
                let mut again = pass.work.pool.take(x.len());
                again.copy_from_slice(&x);
                let run = Run { layer: 0, gather: None, stop: false, save: true };
                match self.forward(pass, &mut again, run)? {
                    Some(inner) => inner,
                    // A pass that saves and does not stop always returns what it saved.
                    None => return Err(candle_core::Error::Msg("a block kept nothing".into()).into()),
                }
            }
        };
        let (eps, work) = (pass.eps(), pass.work);
        let Inner { q, k, v, plain_qk, mixed, attention, middle, gate, up, mlp } = inner;
        let parallel = pass.config.residual == Residual::Parallel;

        // The MLP.
        let dmlp = match (&self.post_norms, mlp) {
            (Some((_, norm)), Some(mlp)) => {
                let mut dmlp = work.pool.take(dx.len());
                norm.backward(eps, &mlp, dx, &mut dmlp, false, gradients)?;
                Some(dmlp)
            }
            _ => None,
        };
        let dmlp = dmlp.as_deref().unwrap_or(dx);
        let (mut gate, mut up) = (gate, up);
        let mut dact = pass.take(self.up_proj.rows);
        let act = if self.down_proj.needs_input() {
            let mut act = pass.take(self.up_proj.rows);
            mlp::forward(pass.config.activation, gate.as_deref(), &up, &mut act);
            Some(act)
        } else {
            None
        };
        let act = act.as_deref().unwrap_or(&[]);
        self.down_proj.backward(act, dmlp, Some(&mut dact), false, gradients, work)?;
        mlp::backward(pass.config.activation, gate.as_deref_mut(), &mut up, &dact);
        drop(dact);
        let source = middle.as_ref().unwrap_or(&x);
        let needs = self.up_proj.needs_input() || self.gate_proj.as_ref().is_some_and(Linear::needs_input);
        let h = if needs { Some(pass.norm(&self.mlp_norm, source)?) } else { None };
        let input = h.as_deref().unwrap_or(&[]);
        let mut dh = pass.take(pass.config.hidden_size);
        self.up_proj.backward(input, &up, Some(&mut dh), false, gradients, work)?;
        if let (Some(linear), Some(gate)) = (&self.gate_proj, &gate) {
            linear.backward(input, gate, Some(&mut dh), true, gradients, work)?;
        }
        drop((h, gate, up));
        // In parallel blocks attention sees the gradient as it came; the MLP's share is added at the end.
        let mut mlp_share = None;
        if parallel {
            let mut share = pass.take(pass.config.hidden_size);
            self.mlp_norm.backward(eps, source, &dh, &mut share, false, gradients)?;
            mlp_share = Some(share);
        } else {
            self.mlp_norm.backward(eps, source, &dh, dx, true, gradients)?;
        }

        // Attention.
        let dattention = match (&self.post_norms, attention) {
            (Some((norm, _)), Some(attention)) => {
                let mut d = work.pool.take(dx.len());
                norm.backward(eps, &attention, dx, &mut d, false, gradients)?;
                Some(d)
            }
            _ => None,
        };
        let dattention = dattention.as_deref().unwrap_or(dx);
        let mut dmixed = work.pool.take(mixed.len());
        self.o_proj.backward(&mixed, dattention, Some(&mut dmixed), false, gradients, work)?;
        drop(mixed);
        let geometry = Geometry::new(pass.config, self.window);
        let (mut dq, mut dk, mut dv) =
            (work.pool.take(q.len()), work.pool.take(k.len()), work.pool.take(v.len()));
        let inputs = Inputs { q: &q, k: &k, v: &v };
        let slopes = Slopes { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(&geometry, pass.batch, inputs, &dmixed, slopes);
        drop((q, k, v, dmixed));
        if let Some(rope) = &self.rope {
            rope.rotate(&mut dq, pass.config.head_dim, pass.positions, true);
            rope.rotate(&mut dk, pass.config.head_dim, pass.positions, true);
        }
        if let (Some((q_norm, k_norm)), Some((plain_q, plain_k))) = (&self.qk_norm, plain_qk) {
            for (norm, plain, d) in [(q_norm, plain_q, &mut dq), (k_norm, plain_k, &mut dk)] {
                let mut through = work.pool.take(d.len());
                norm.backward(eps, &plain, d, &mut through, false, gradients)?;
                *d = through;
            }
        }
        let projections = [(&self.q_proj, &dq), (&self.k_proj, &dk), (&self.v_proj, &dv)];
        let needs = projections.iter().any(|(linear, _)| linear.needs_input());
        let h = if needs { Some(pass.norm(&self.input_norm, &x)?) } else { None };
        let input = h.as_deref().unwrap_or(&[]);
        let below = !first || self.input_norm.trained();
        for (index, (linear, d)) in projections.into_iter().enumerate() {
            linear.backward(input, d, below.then_some(&mut *dh), index > 0, gradients, work)?;
        }
        if below {
            self.input_norm.backward(eps, &x, &dh, dx, true, gradients)?;
        }
        if let Some(share) = mlp_share {
            add(dx, &share);
        }
        Ok(())
    }
}

/// [`Inner`] while it is being filled.
#[derive(Debug, Default)]
pub(super) struct Parts {
    qkv: Option<(Buffer, Buffer, Buffer)>,
    attention: Option<Buffer>,
    middle: Option<Buffer>,
    gate: Option<Buffer>,
    up: Option<Buffer>,
    mlp: Option<Buffer>,
}
