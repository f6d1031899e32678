"""Grammars: which tokens may come next.  Compiled by llguidance, off the step loop, cached per tenant.

compiler = GrammarCompiler(tokenizer_spec, vocab_size)
matcher = compiler.compile("regex", "[0-9]+", tenant="").matcher()
matcher.mask_bytes(); matcher.accept([token])
"""

from pieray.grammar.compiler import Grammar, GrammarCompiler
from pieray.grammar.matcher import Matcher
from pieray.grammar.source import KINDS
from pieray.grammar.trial import Trial, TrialPool

__all__ = ["KINDS", "Grammar", "GrammarCompiler", "Matcher", "Trial", "TrialPool"]
