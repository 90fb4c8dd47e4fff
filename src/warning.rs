//! Warnings about combinations that can be built but are known to fail.

use std::fmt;

use crate::regime::Regime;
use crate::rule::Rule;

/// Valid combination that is known to fail, with an alternative. [`OptimizerBuilder::warnings`] lists the warnings, and
/// `build` writes each to the [`log`](https://docs.rs/log) as a warning of the target `wgpu_optim::warnings`.
///
/// [`Display`](fmt::Display) writes the group, the reason, and what to use instead.
///
/// [`OptimizerBuilder::warnings`]: crate::OptimizerBuilder::warnings
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    group: String,
    regime: Regime,
    /// Rule of the group. The regime's formula assumes a step along the gradient. With this rule the step is longer or
    /// has another direction, and the rate diverges. See [`Regime::suits`].
    rule: Rule,
}

impl Warning {
    /// Log target of the warnings that `build` writes.
    pub(crate) const LOG_TARGET: &'static str = "wgpu_optim::warnings";

    /// Returns the name of the group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Returns the warning for a group with these settings, if there is one.
    pub(crate) fn of(group: &str, rule: Rule, regime: Regime) -> Option<Self> {
        (!regime.suits(&rule)).then(|| Warning { group: group.to_owned(), regime, rule })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Warning { group, regime, rule } = self;
        write!(
            f,
            "group \"{group}\": regime {} is known to fail with rule {}, whose momentum ",
            regime.name(),
            rule.name()
        )?;
        match regime {
            Regime::BarzilaiBorwein(_) => write!(
                f,
                "turns the step away from the gradient it is computed from: use rule sgd with large batches, or regime seesaw, \
                 the default, which goes with every rule"
            ),
            _ => write!(
                f,
                "makes the step many times longer than its formula assumes: use rule sgd, signsgd or adamw, or regime seesaw, \
                 the default, which goes with every rule"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regime::SecantForm;
    use crate::{Group, OptimizerBuilder};

    fn texts(builder: &OptimizerBuilder<crate::cpu::Tensor>) -> Vec<String> {
        builder.warnings().iter().map(Warning::to_string).collect()
    }

    /// Each group's own settings count, and the builder's otherwise. Nothing is refused.
    #[test]
    fn warnings_name_the_group_and_what_to_use() {
        let empty: &[f32] = &[];
        let builder = OptimizerBuilder::new(Rule::sgdm(0.9))
            .regime(Regime::dog())
            .group(Group::new("fails").tensor("a", empty, empty))
            .group(Group::new("works").rule(Rule::sgd()).tensor("b", empty, empty));
        let texts = texts(&builder);
        assert_eq!(texts.len(), 1, "{texts:?}");
        for word in ["group \"fails\"", "dog", "sgdm", "use rule sgd"] {
            assert!(texts[0].contains(word), "{word}: {}", texts[0]);
        }
        builder.build_cpu().expect("a warning is no error");
    }

    /// Combinations that fail in the tables of docs/results.md have a warning, and those that work have none.
    #[test]
    fn warnings_are_those_of_the_tables() {
        let momentum = [Rule::sgdm(0.9), Rule::nesterov(0.9), Rule::signum(0.9), Rule::lion()];
        for regime in [
            Regime::dog(),
            Regime::dowg(),
            Regime::barzilai_borwein(SecantForm::Long),
            Regime::barzilai_borwein(SecantForm::Short),
            Regime::barzilai_borwein(SecantForm::Geometric),
        ] {
            assert!(momentum.iter().all(|rule| !regime.suits(rule)), "{regime:?}");
            // Sgdm without momentum is SGD.
            assert!(regime.suits(&Rule::sgd()) && regime.suits(&Rule::sgdm(0.0)));
        }
        assert!(!Regime::polyak().suits(&Rule::sgdm(0.9)));
        for rule in Rule::all() {
            assert!(Regime::seesaw().suits(&rule) && Regime::ngn().suits(&rule));
            assert_eq!(Regime::polyak().suits(&rule), !matches!(rule, Rule::Sgdm { .. }));
        }
    }
}
