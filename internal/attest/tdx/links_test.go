package tdx_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

func TestEventLog(t *testing.T) {
	td := openTD(t, simtdConfig())
	v := verifierOf(t, td)
	full := attestBy(t, td)
	edit := func(f func(eventlog.Log) eventlog.Log) []byte {
		text, err := f(slices.Clone(td.EventLog())).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	first := func(l eventlog.Log, imr int) int {
		return slices.IndexFunc(l, func(e eventlog.Event) bool { return int(e.IMR) == imr })
	}
	tests := []struct {
		name   string
		log    []byte
		reason string // "" = accepted
	}{
		{"is not needed", nil, ""},
		{"replays", full.EventLog, ""},
		{"replays without any boot event, as in a certificate", edit(func(l eventlog.Log) eventlog.Log {
			return slices.DeleteFunc(l, func(e eventlog.Event) bool { return e.IMR != eventlog.RuntimeIMR })
		}), ""},
		{"replays with no boot events but marks of ACPI data, as in a certificate", edit(func(l eventlog.Log) eventlog.Log {
			l = slices.DeleteFunc(l, func(e eventlog.Event) bool { return e.IMR != eventlog.RuntimeIMR })
			return append(l, eventlog.Event{IMR: 0, Type: 10, Name: "acpi-rsdp", Payload: []byte("ACPI DATA"), Digest: make([]byte, 48)})
		}), ""},
		{"has one other boot event", edit(func(l eventlog.Log) eventlog.Log {
			l = slices.DeleteFunc(l, func(e eventlog.Event) bool { return e.IMR != eventlog.RuntimeIMR })
			return append(l, eventlog.Event{IMR: 0, Type: 10, Name: "x", Payload: []byte("other"), Digest: make([]byte, 48)})
		}), "RTMR0 replays to"},
		{"lacks the last event", edit(func(l eventlog.Log) eventlog.Log { return l[:len(l)-1] }), "RTMR3 replays to"},
		{"lacks one boot event", edit(func(l eventlog.Log) eventlog.Log { i := first(l, 1); return slices.Delete(l, i, i+1) }), "RTMR1 replays to"},
		{"lacks all events of RTMR3", edit(func(l eventlog.Log) eventlog.Log {
			return slices.DeleteFunc(l, func(e eventlog.Event) bool { return e.IMR == eventlog.RuntimeIMR })
		}), "RTMR3 replays to"},
		{"has another digest", edit(func(l eventlog.Log) eventlog.Log {
			i := first(l, 0)
			l[i].Digest = bytes.Repeat([]byte{7}, 48)
			return l
		}), "RTMR0 replays to"},
		{"has another payload", edit(func(l eventlog.Log) eventlog.Log {
			i := slices.IndexFunc(l, func(e eventlog.Event) bool { return e.Runtime() && len(e.Payload) > 0 })
			l[i].Payload, l[i].Digest = append([]byte{1}, l[i].Payload...), nil
			return l
		}), "RTMR3 replays to"},
		{"is empty text", []byte{}, "not JSON"},
		{"is an empty list", []byte("[]"), "RTMR3 replays to"},
		{"is cut", full.EventLog[:len(full.EventLog)/2], "not JSON"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), &attest.Evidence{Quote: full.Quote, EventLog: tt.log})
			if tt.reason == "" {
				if err != nil {
					t.Errorf("Verify() = %v", err)
				}
				return
			}
			wantRefusal(t, err, attest.LinkEventLog, tt.reason)
		})
	}
}

func TestTrace(t *testing.T) {
	td := openTD(t, simtdConfig())
	v := verifierOf(t, td)
	ev := attestBy(t, td)
	full := v.Trace(t.Context(), ev)
	if full.Err() != nil || full.Claims == nil {
		t.Fatalf("Trace() = %+v, want Claims", full)
	}
	for _, s := range full.Steps {
		if !s.Checked || s.Err != nil || s.Detail == "" {
			t.Errorf("step %+v, want checked, without error, with a detail", s)
		}
	}
	forged := *ev
	forged.Quote = bytes.Clone(ev.Quote)
	forged.Quote[200] ^= 1
	other := openTD(t, simtdConfig())
	tests := []struct {
		name  string
		trace *tdx.Trace
		// One letter per link: + holds, x fails, - not checked.
		want string
	}{
		{"all links hold", full, "++++++++++"},
		{"offline", v.TraceOffline(t.Context(), ev), "++++++---+"},
		{"no quote at all", v.Trace(t.Context(), &attest.Evidence{}), "x---------"},
		{"another body", v.Trace(t.Context(), &forged), "+++x++++++"},
		{"another root", verifierOf(t, other).Trace(t.Context(), ev), "+x-+++---+"},
		{"no collateral", newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Now: (&clock{simTime}).Now}).Trace(t.Context(), ev), "++++++x--+"},
		{"debug", v.Trace(t.Context(), quoteOf(t, td, simtd.Shape{EditSigned: func(b []byte) { b[168] |= 1 }})), "++++x+++++"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got strings.Builder
			for _, s := range tt.trace.Steps {
				switch {
				case !s.Checked:
					got.WriteByte('-')
				case s.Err != nil:
					got.WriteByte('x')
				default:
					got.WriteByte('+')
				}
			}
			if got.String() != tt.want {
				t.Errorf("Trace() = %s, want %s", &got, tt.want)
			}
			if failed := strings.Contains(tt.want, "x"); failed != (tt.trace.Err() != nil) || failed != (tt.trace.Claims == nil) {
				t.Errorf("Err() = %v, Claims = %v", tt.trace.Err(), tt.trace.Claims)
			}
		})
	}
}

// TestTraceAgreesWithVerify holds that both are one path.
func TestTraceAgreesWithVerify(t *testing.T) {
	td := openTD(t, simtdConfig())
	ev := attestBy(t, td)
	for i := range len(ev.Quote) / 97 {
		bad := &attest.Evidence{Quote: bytes.Clone(ev.Quote), EventLog: ev.EventLog}
		bad.Quote[i*97] ^= 0x10
		_, verifyErr := verifierOf(t, td).Verify(t.Context(), bad)
		traceErr := verifierOf(t, td).Trace(t.Context(), bad).Err()
		if text(verifyErr) != text(traceErr) {
			t.Errorf("byte %d flipped: Verify() = %v, Trace() = %v", i*97, verifyErr, traceErr)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
