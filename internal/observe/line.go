package observe

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// lineEncoder makes sure that an entry is one line and shows what it holds:
// control characters, line separators and characters that change the direction
// of writing come out as \u escapes, so that text from outside can neither forge
// an entry nor drive a terminal. Inside of JSON strings the escapes are JSON's.
type lineEncoder struct{ zapcore.Encoder }

// Clone implements zapcore.Encoder.
func (e *lineEncoder) Clone() zapcore.Encoder { return &lineEncoder{Encoder: e.Encoder.Clone()} }

// EncodeEntry implements zapcore.Encoder.
func (e *lineEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	buf, err := e.Encoder.EncodeEntry(entry, fields)
	if err != nil {
		return nil, err
	}
	line := strings.TrimSuffix(buf.String(), "\n")
	if !strings.ContainsFunc(line, needsEscape) && utf8.ValidString(line) {
		return buf, nil
	}
	buf.Reset()
	for _, r := range line {
		if needsEscape(r) {
			buf.AppendString(escape(r))
			continue
		}
		buf.AppendString(string(r))
	}
	buf.AppendString("\n")
	return buf, nil
}

func needsEscape(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) || unicode.Is(unicode.Bidi_Control, r)
}

func escape(r rune) string {
	switch r {
	case '\n':
		return `\n`
	case '\r':
		return `\r`
	case '\t':
		return `\t`
	default:
		return fmt.Sprintf(`\u%04x`, r)
	}
}
