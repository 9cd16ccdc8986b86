package eventlog

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// Parse reads the JSON text of a log: an array of objects with imr,
// event_type, event, event_payload, and optionally digest and version. Hex is
// taken in either case. Keys it does not know are skipped; a key of its own
// given twice, a wrong type, or a bound of this package exceeded is an error.
func Parse(text []byte) (Log, error) {
	switch {
	case len(text) > MaxTextSize:
		return nil, fmt.Errorf("event log of %d bytes, want at most %d", len(text), MaxTextSize)
	case !utf8.Valid(text):
		// encoding/json would replace what is not UTF-8 without a word.
		return nil, errors.New("event log is not UTF-8")
	case !json.Valid(text):
		return nil, errors.New("event log is not JSON")
	}
	p := parser{json.NewDecoder(bytes.NewReader(text))}
	p.UseNumber()
	if err := p.expect('['); err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	log := Log{}
	for p.More() {
		if len(log) == MaxEvents {
			return nil, fmt.Errorf("event log has more than %d events", MaxEvents)
		}
		e, err := p.event()
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", len(log), err)
		}
		log = append(log, e)
	}
	return log, nil
}

type parser struct{ *json.Decoder }

func (p parser) expect(d json.Delim) error {
	t, err := p.Token()
	if err != nil {
		return fmt.Errorf("reading %v: %w", d, noEOF(err))
	}
	if t != d {
		return fmt.Errorf("want %v", d)
	}
	return nil
}

// event reads one object and checks it.
func (p parser) event() (Event, error) {
	var e Event
	if err := p.expect('{'); err != nil {
		return e, err
	}
	seen := map[string]bool{}
	for p.More() {
		t, err := p.Token()
		if err != nil {
			return e, fmt.Errorf("reading a key: %w", noEOF(err))
		}
		key, _ := t.(string) // json.Valid has seen to it
		known, err := p.field(&e, key)
		if err != nil {
			return e, fmt.Errorf("%s: %w", key, err)
		}
		if known && seen[key] {
			return e, fmt.Errorf("%s: given twice", key)
		}
		seen[key] = known
	}
	if err := p.expect('}'); err != nil {
		return e, err
	}
	for _, key := range []string{"imr", "event_type", "event", "event_payload"} {
		if !seen[key] {
			return e, fmt.Errorf("%s: missing", key)
		}
	}
	return e, e.Check()
}

// field reads the value of one key into e, or skips it.
func (p parser) field(e *Event, key string) (known bool, err error) {
	switch key {
	case "imr":
		e.IMR, err = p.number()
	case "event_type":
		e.Type, err = p.number()
	case "digest":
		e.Digest, err = p.bytes()
	case "event":
		e.Name, err = p.text()
	case "event_payload":
		e.Payload, err = p.bytes()
	case "version":
		e.Version, err = p.version()
	default:
		return false, p.skip()
	}
	return true, err
}

func (p parser) number() (uint32, error) {
	t, err := p.Token()
	if err != nil {
		return 0, noEOF(err)
	}
	n, ok := t.(json.Number)
	if !ok {
		return 0, errors.New("want a number")
	}
	v, err := strconv.ParseUint(n.String(), 10, 32)
	if err != nil {
		return 0, errors.New("want an integer of 32 bits without sign")
	}
	return uint32(v), nil
}

func (p parser) version() (int, error) {
	v, err := p.number()
	if err != nil {
		return 0, err
	}
	if v != 1 && v != 2 {
		return 0, fmt.Errorf("is %d, want 1 or 2", v)
	}
	if v == 1 {
		return 0, nil // one spelling for one meaning
	}
	return int(v), nil
}

func (p parser) text() (string, error) {
	t, err := p.Token()
	if err != nil {
		return "", noEOF(err)
	}
	s, ok := t.(string)
	if !ok {
		return "", errors.New("want a string")
	}
	return s, nil
}

func (p parser) bytes() ([]byte, error) {
	s, err := p.text()
	if err != nil || s == "" {
		return nil, err
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, errors.New("want hex")
	}
	return b, nil
}

// skip passes over one value of any type.
func (p parser) skip() error {
	for depth := 0; ; {
		t, err := p.Token()
		if err != nil {
			return noEOF(err)
		}
		switch t {
		case json.Delim('['), json.Delim('{'):
			depth++
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
		if depth > maxDepth {
			return fmt.Errorf("nested deeper than %d", maxDepth)
		}
		if depth == 0 {
			return nil
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// jsonEvent gives the keys their order.
type jsonEvent struct {
	IMR     uint32 `json:"imr"`
	Type    uint32 `json:"event_type"`
	Digest  string `json:"digest"`
	Name    string `json:"event"`
	Payload string `json:"event_payload"`
	Version int    `json:"version,omitempty"`
}

// Marshal writes the log as [Parse] reads it: lower-case hex, version only
// where it is 2. It refuses a log that Parse would.
func (l Log) Marshal() ([]byte, error) {
	if len(l) > MaxEvents {
		return nil, fmt.Errorf("event log has more than %d events", MaxEvents)
	}
	out := make([]jsonEvent, len(l))
	for i := range l {
		e := &l[i]
		if err := e.Check(); err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		out[i] = jsonEvent{IMR: e.IMR, Type: e.Type, Digest: hex.EncodeToString(e.Digest), Name: e.Name, Payload: hex.EncodeToString(e.Payload)}
		if e.Version == 2 {
			out[i].Version = 2
		}
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("writing event log: %w", err)
	}
	if len(text) > MaxTextSize {
		return nil, fmt.Errorf("event log of %d bytes, want at most %d", len(text), MaxTextSize)
	}
	return text, nil
}
