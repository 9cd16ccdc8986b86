package keys_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"teekms/internal/keys"
)

const secretText = "correct horse battery"

// shows reports whether the output gives the secret away in one of the ways in
// which fmt and the encoders write bytes.
func shows(output string) bool {
	decimal := strings.Trim(fmt.Sprintf("%d", []byte(secretText)), "[]")
	forms := []string{
		secretText, hex.EncodeToString([]byte(secretText)), strings.ToUpper(hex.EncodeToString([]byte(secretText))),
		decimal, strings.ReplaceAll(decimal, " ", ","), "0x63, 0x6f", "Y29ycmVjd",
	}
	for _, f := range forms {
		if strings.Contains(output, f) {
			return true
		}
	}
	return false
}

func TestShowsSeesEveryForm(t *testing.T) {
	for _, format := range []string{"%v", "%#v", "%s", "%x", "%X", "%q"} {
		if got := fmt.Sprintf(format, []byte(secretText)); !shows(got) {
			t.Errorf("shows(%q) = false, want true", got)
		}
	}
}

func TestSecretIsRedactedByFmt(t *testing.T) {
	s := keys.NewSecret([]byte(secretText))
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "% x", "%q", "%d", "%08b", "%t"} {
		if got := fmt.Sprintf(format, s); got != "[redacted]" {
			t.Errorf("Sprintf(%q) = %q, want [redacted]", format, got)
		}
		if got := fmt.Sprintf(format, &s); got != "[redacted]" {
			t.Errorf("Sprintf(%q, pointer) = %q, want [redacted]", format, got)
		}
		// fmt does not ask the methods of unexported fields.
		type inner struct{ hidden keys.Secret }
		outer := struct {
			Shown keys.Secret
			in    inner
			list  []keys.Secret
			at    map[string]keys.Secret
		}{s, inner{s}, []keys.Secret{s}, map[string]keys.Secret{"k": s}}
		if got := fmt.Sprintf(format, outer); shows(got) {
			t.Errorf("Sprintf(%q, struct) = %q shows the secret", format, got)
		}
		if got := fmt.Sprintf(format, &outer); shows(got) {
			t.Errorf("Sprintf(%q, pointer to struct) = %q shows the secret", format, got)
		}
	}
	if got := fmt.Errorf("wrapping %w and %v", fmt.Errorf("x %s", s), s).Error(); shows(got) {
		t.Errorf("Errorf = %q shows the secret", got)
	}
	if got := fmt.Sprint(s.String(), s.GoString()); got != "[redacted][redacted]" && got != "[redacted] [redacted]" {
		t.Errorf("String, GoString = %q, want [redacted]", got)
	}
}

func TestSecretIsRedactedByEncoders(t *testing.T) {
	s := keys.NewSecret([]byte(secretText))
	type doc struct {
		S keys.Secret
		P *keys.Secret
	}
	got, err := json.Marshal(doc{s, &s})
	if want := `{"S":"[redacted]","P":"[redacted]"}`; err != nil || string(got) != want {
		t.Errorf("json.Marshal = %s, %v, want %s", got, err, want)
	}
	got, err = s.MarshalText()
	if err != nil || string(got) != "[redacted]" {
		t.Errorf("MarshalText = %s, %v, want [redacted]", got, err)
	}
	got, err = xml.Marshal(doc{s, nil})
	if want := `<doc><S>[redacted]</S></doc>`; err != nil || string(got) != want {
		t.Errorf("xml.Marshal = %s, %v, want %s", got, err, want)
	}
}

func TestSecretIsRedactedByZap(t *testing.T) {
	s := keys.NewSecret([]byte(secretText))
	roots, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	config := zapcore.EncoderConfig{MessageKey: "msg"}
	for _, encoder := range []zapcore.Encoder{zapcore.NewJSONEncoder(config), zapcore.NewConsoleEncoder(config)} {
		var out bytes.Buffer
		log := zap.New(zapcore.NewCore(encoder, zapcore.AddSync(&out), zap.DebugLevel))
		log.Info("m", zap.Any("any", s), zap.Stringer("stringer", s), zap.Reflect("reflect", s),
			zap.Any("list", []keys.Secret{s}), zap.Any("roots", roots))
		log.Sugar().Infow("m", "s", s, "p", &s)
		if shows(out.String()) {
			t.Errorf("log = %s shows the secret", out.String())
		}
		if n := strings.Count(out.String(), "[redacted]"); n < 6 {
			t.Errorf("log = %s has [redacted] %d times, want at least 6", out.String(), n)
		}
	}
}

func TestSecretEqual(t *testing.T) {
	tests := []struct {
		name string
		a, b keys.Secret
		want bool
	}{
		{"same bytes", keys.NewSecret([]byte("abc")), keys.NewSecret([]byte("abc")), true},
		{"other bytes", keys.NewSecret([]byte("abc")), keys.NewSecret([]byte("abd")), false},
		{"prefix", keys.NewSecret([]byte("abc")), keys.NewSecret([]byte("ab")), false},
		{"zero value is the empty secret", keys.Secret{}, keys.NewSecret(nil), true},
		{"empty is not something", keys.Secret{}, keys.NewSecret([]byte{0}), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.a.Equal(tt.b); got != tt.want {
				t.Errorf("Equal = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestSecretCopies(t *testing.T) {
	in := []byte("abc")
	s := keys.NewSecret(in)
	in[0] = 'x'
	s.Bytes()[1] = 'x'
	if got := s.Bytes(); string(got) != "abc" || s.Len() != 3 {
		t.Errorf("Bytes = %q (%d), want abc", got, s.Len())
	}
}
