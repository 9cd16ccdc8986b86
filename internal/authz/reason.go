package authz

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxReasonSize bounds the reason of a decision in bytes.
const MaxReasonSize = 512

// PublicReason makes an authority's text fit for callers, logs and terminals:
// one line of printable characters (others become a space, runs of spaces one),
// cut to [MaxReasonSize] bytes.
func PublicReason(text string) string {
	// Nothing below makes the text longer.
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, cut(text))
	return strings.Join(strings.Fields(text), " ")
}

// cut shortens text to MaxReasonSize bytes without splitting a character.
func cut(text string) string {
	if len(text) <= MaxReasonSize {
		return text
	}
	end := MaxReasonSize
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
