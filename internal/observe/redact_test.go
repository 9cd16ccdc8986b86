package observe_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"teekms/internal/observe"
)

func newLogger(t testing.TB, format string) (*zap.Logger, *bytes.Buffer) {
	t.Helper()
	out := &bytes.Buffer{}
	log, err := observe.NewLogger(observe.Config{Level: "debug", Format: format, Out: out})
	if err != nil {
		t.Fatalf("NewLogger(%s) = %v, want no error", format, err)
	}
	return log, out
}

func TestFieldsNamedLikeSecretsAreRedacted(t *testing.T) {
	const canary = "s3cr3t-canary"
	keys := []string{
		"token", "setup_token", "Authorization", "db-password", "http.cookie", "passphrase", "client_secret",
		"pkcs12", "dsn", "private_key", "root_key", "k256_key", "key_material",
	}
	for _, format := range []string{observe.FormatConsole, observe.FormatJSON} {
		for _, key := range keys {
			log, out := newLogger(t, format)
			fields := []zap.Field{zap.String("app_id", "00ff"), zap.String(key, canary), zap.ByteString(key, []byte(canary)), zap.Error(errors.New(canary + " told by an error"))}
			log.With(fields[:3]...).Info("said", fields[:3]...)
			if got := out.String(); strings.Contains(got, canary) || strings.Count(got, "[redacted]") != 4 || strings.Count(got, "00ff") != 2 {
				t.Errorf("%s: line with %s = %q, want 4 redacted values and both app_id", format, key, got)
			}
			if fields[1].String != canary {
				t.Errorf("the caller's fields were changed")
			}
		}
	}
}

func TestOtherFieldsAreNot(t *testing.T) {
	for _, key := range []string{"key", "app_id", "peer", "procedure", "tokens_left", "public_key", "ca_pubkey", "path"} {
		log, out := newLogger(t, observe.FormatConsole)
		log.Info("said", zap.String(key, "value"))
		if got := out.String(); !strings.Contains(got, "value") {
			t.Errorf("line with %s = %q, want the value", key, got)
		}
	}
}

// hostile is text that would forge a second line, color a terminal, or turn the
// direction of writing.
const hostile = "a\n2025-11-20T10:35:20Z INFO forged\r\x1b[31m\u0085\u2028\u202e\x7f\xff"

func TestLinesCannotBeForged(t *testing.T) {
	for _, format := range []string{observe.FormatConsole, observe.FormatJSON} {
		log, out := newLogger(t, format)
		log.Named(hostile).With(zap.String(hostile, hostile)).Info(hostile, zap.Strings("peers", []string{hostile}), zap.Error(errors.New(hostile)))
		got := out.String()
		if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") {
			t.Errorf("%s: %q is not one line", format, got)
		}
		if i := strings.IndexAny(strings.TrimSuffix(got, "\n"), "\n\r\x1b\u0085\u2028\u202e\x7f"); i >= 0 {
			t.Errorf("%s: line holds a control character at %d: %q", format, i, got)
		}
	}
}

func TestJSONStaysJSON(t *testing.T) {
	log, out := newLogger(t, observe.FormatJSON)
	log.Info(hostile, zap.String("peer", hostile))
	var line struct{ TS, Level, Msg, Peer string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("Unmarshal(%q) = %v, want no error", out, err)
	}
	want := strings.ToValidUTF8(hostile, "\ufffd")
	if line.Msg != want || line.Peer != want || line.Level != "info" || len(line.TS) != len("2025-11-20T10:35:20Z") {
		t.Errorf("line = %+q, want message and peer %+q", line, want)
	}
}

func TestLevelDecidesAndCanChange(t *testing.T) {
	out := &bytes.Buffer{}
	level := zap.NewAtomicLevel()
	log, err := observe.NewLogger(observe.Config{Level: "warn", Format: observe.FormatConsole, Out: out, AtomicLevel: &level})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("too low")
	log.Warn("heard")
	level.SetLevel(zapcore.DebugLevel)
	log.With(zap.Int("n", 1)).Debug("now heard")
	if got := out.String(); strings.Contains(got, "too low") || !strings.Contains(got, "WARN heard") || !strings.Contains(got, "DEBUG now heard") {
		t.Errorf("lines = %q, want the second and the third", got)
	}
}

func TestNewLoggerRefuses(t *testing.T) {
	out := &bytes.Buffer{}
	tests := []struct {
		name string
		c    observe.Config
		want string
	}{
		{"no output", observe.Config{Level: "info", Format: "json"}, "making logger: no output given"},
		{"unknown level", observe.Config{Level: "loud", Format: "json", Out: out}, `making logger: unknown level "loud"`},
		{"unknown format", observe.Config{Level: "info", Format: "xml", Out: out}, `making logger: unknown format "xml"`},
		{"zero value", observe.Config{Out: out}, `making logger: unknown level ""`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := observe.NewLogger(tt.c); err == nil || err.Error() != tt.want {
				t.Errorf("NewLogger() = %v, want %s", err, tt.want)
			}
		})
	}
}

func FuzzLine(f *testing.F) {
	f.Add(hostile, "key", hostile)
	f.Add("Starting KMS in bootstrap mode", "", "")
	f.Add("\xff\xfe", "\u202e", "\\u0000")
	f.Fuzz(func(t *testing.T, message, key, value string) {
		log, out := newLogger(t, observe.FormatConsole)
		log.Info(message, zap.String(key, value))
		got := out.String()
		if strings.Count(got, "\n") != 1 || strings.ContainsAny(got, "\r\x1b\u2028\u202e\x7f") {
			t.Errorf("line of %q, %q, %q = %q, want one line without control characters", message, key, value, got)
		}
		log, out = newLogger(t, observe.FormatJSON)
		log.Info(message, zap.String(key, value))
		if !json.Valid(out.Bytes()) {
			t.Errorf("line of %q, %q, %q = %q, want JSON", message, key, value, out)
		}
	})
}

// gathered returns name{labels} value of every metric with the prefix.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if l.GetName() != "go_version" {
					labels = append(labels, l.GetName()+"="+l.GetValue())
				}
			}
			got[family.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue()
		}
	}
	return got
}
