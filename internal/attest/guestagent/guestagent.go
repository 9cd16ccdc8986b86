// Package guestagent attests by way of the dstack guest agent: it asks
// dstack.sock for an attestation, older agents for a quote, and before them
// tappd.sock (docs/wire.md#guest-agent).
//
// What an agent says is checked for its shape and for quoting what was asked;
// whether it is true is for a verifier to find out.
package guestagent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/versioned"
)

// ErrSocketNotFound says that none of the sockets is there. It is
// [attest.ErrNoAttester], in the words that operators know.
var ErrSocketNotFound error = socketNotFound{}

type socketNotFound struct{}

func (socketNotFound) Error() string { return "tappd socket not found" }
func (socketNotFound) Unwrap() error { return attest.ErrNoAttester }

// defaultTimeout is for a host whose quoting service is slow.
const defaultTimeout = 30 * time.Second

// DefaultSockets are where guest agents listen, in the order they are tried.
func DefaultSockets() []string {
	return []string{"/var/run/dstack/dstack.sock", "/var/run/dstack.sock"}
}

// DefaultTappdSockets are where the agent's predecessor listens.
func DefaultTappdSockets() []string {
	return []string{"/var/run/dstack/tappd.sock", "/var/run/tappd.sock"}
}

// Config says where the agent is.
type Config struct {
	// Address, when not empty, is the one place to ask: "unix:/path" or
	// "http://host:port". The lists below are not used then.
	Address string
	// Sockets and TappdSockets are paths of unix sockets, tried in order, the
	// former first. Nil means the defaults.
	Sockets, TappdSockets []string
	// Timeout bounds one Attest or Info; 30 seconds when zero.
	Timeout time.Duration
}

// Agent asks a guest agent. It holds no connection.
type Agent struct {
	endpoints []endpoint
	timeout   time.Duration
}

var _ attest.Attester = (*Agent)(nil)

// endpoint is a place where an agent may be.
type endpoint struct {
	network, address string
	tappd            bool // speaks the predecessor's methods
}

func (e endpoint) String() string { return e.network + ":" + e.address }

// New makes an Agent. It does not look whether one is there.
func New(cfg Config) (*Agent, error) {
	a := &Agent{timeout: cfg.Timeout}
	if a.timeout <= 0 {
		a.timeout = defaultTimeout
	}
	if cfg.Address != "" {
		e, err := parseAddress(cfg.Address)
		if err != nil {
			return nil, fmt.Errorf("guest agent address %q: %w", cfg.Address, err)
		}
		a.endpoints = []endpoint{e}
		return a, nil
	}
	if cfg.Sockets == nil {
		cfg.Sockets = DefaultSockets()
	}
	if cfg.TappdSockets == nil {
		cfg.TappdSockets = DefaultTappdSockets()
	}
	for _, path := range cfg.Sockets {
		a.endpoints = append(a.endpoints, endpoint{"unix", path, false})
	}
	for _, path := range cfg.TappdSockets {
		a.endpoints = append(a.endpoints, endpoint{"unix", path, true})
	}
	return a, nil
}

func parseAddress(address string) (endpoint, error) {
	scheme, rest, _ := strings.Cut(address, ":")
	switch scheme {
	case "unix":
		path := strings.TrimPrefix(rest, "//")
		if !strings.HasPrefix(path, "/") {
			return endpoint{}, errors.New("want unix: and an absolute path")
		}
		return endpoint{"unix", path, false}, nil
	case "http":
		return parseHTTP(address)
	case "vsock":
		return endpoint{}, errors.New("vsock is not supported, only unix and http")
	}
	return endpoint{}, errors.New("want unix:/path or http://host:port")
}

func parseHTTP(address string) (endpoint, error) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return endpoint{}, errors.New("want http://host:port")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return endpoint{}, errors.New("want http://host:port with nothing after")
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	return endpoint{"tcp", net.JoinHostPort(u.Hostname(), port), false}, nil
}

// Attest asks the first agent that is there for Evidence over rd. The event log
// is as the agent gave it, with or without the digests of runtime events.
func (a *Agent) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	var ev *attest.Evidence
	err := a.each(ctx, func(ctx context.Context, c client) error {
		var err error
		if c.tappd {
			ev, err = c.quote(ctx, "RawQuote", rd)
			return err
		}
		ev, err = c.attest(ctx, rd)
		// Agents before 0.5.6 do not know Attest, and what it answers where
		// runtime events have the newer digest is in a format we do not read.
		var status *StatusError
		if !errors.As(err, &status) && !errors.Is(err, versioned.ErrUnsupported) {
			return err
		}
		first := err
		if ev, err = c.quote(ctx, "GetQuote", rd); err != nil {
			return fmt.Errorf("%w; before that, %w", err, first)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("asking guest agent for a quote: %w", err)
	}
	return ev, nil
}

// Info is what an agent says about its guest. None of it is proven.
type Info struct {
	// VMConfig is JSON text about the virtual machine.
	VMConfig string
	// OSImageHash is empty where the agent does not know it.
	OSImageHash []byte
	// AppID, InstanceID and ComposeHash are empty where the agent has none.
	AppID, InstanceID, ComposeHash []byte
}

// Info asks the first agent that is there about its guest.
func (a *Agent) Info(ctx context.Context) (*Info, error) {
	var info *Info
	err := a.each(ctx, func(ctx context.Context, c client) error {
		var err error
		info, err = c.info(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("asking guest agent about its guest: %w", err)
	}
	return info, nil
}

// each calls f with the endpoints that are there until one can be reached. An
// answer, be it a refusal, ends the search; a socket that nobody listens on
// does not.
func (a *Agent) each(ctx context.Context, f func(context.Context, client) error) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	var first error
	for _, e := range a.endpoints {
		err := e.present()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = f(ctx, client{e})
		}
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%s: %w", e, err)
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "dial" || ctx.Err() != nil {
			return err
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		return ErrSocketNotFound
	}
	return first
}

// present returns an error that is fs.ErrNotExist when no socket is there.
// Container runtimes make a directory where a mounted socket is missing.
func (e endpoint) present() error {
	if e.network != "unix" {
		return nil
	}
	info, err := os.Stat(e.address)
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("not a socket: %w", fs.ErrNotExist)
	}
	return err //nolint:wrapcheck // it names the path
}

// attest asks for a VersionedAttestation.
func (c client) attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	b, err := c.call(ctx, "Attest", reportDataRequest(rd))
	if err != nil {
		return nil, err
	}
	ev, err := decodeAttestation(b, rd)
	if err != nil {
		return nil, fmt.Errorf("Attest: %w", err)
	}
	return ev, nil
}

func decodeAttestation(body []byte, rd attest.ReportData) (*attest.Evidence, error) {
	var answer struct {
		Attestation string `json:"attestation"`
	}
	if err := decode(body, &answer); err != nil {
		return nil, err
	}
	b, err := unhex(answer.Attestation)
	if err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	a, err := versioned.Parse(b)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what was read
	}
	ev, err := a.Evidence()
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what was read
	}
	if a.ReportData != rd.Bytes() {
		return nil, errOtherReportData
	}
	return ev, nil
}

// errOtherReportData: a relying party would find it out, but late.
var errOtherReportData = errors.New("the quote is over other report data than asked for")

// quote asks by one of the methods that answer a quote and a log side by side.
func (c client) quote(ctx context.Context, method string, rd attest.ReportData) (*attest.Evidence, error) {
	b, err := c.call(ctx, method, reportDataRequest(rd))
	if err != nil {
		return nil, err
	}
	ev, err := decodeQuote(b, rd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return ev, nil
}

func decodeQuote(body []byte, rd attest.ReportData) (*attest.Evidence, error) {
	var answer struct {
		Quote    string `json:"quote"`
		EventLog string `json:"event_log"`
		VMConfig string `json:"vm_config"`
	}
	if err := decode(body, &answer); err != nil {
		return nil, err
	}
	b, err := unhex(answer.Quote)
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	q, err := tdx.ParseQuote(b)
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	if q.ReportData() != rd.Bytes() {
		return nil, errOtherReportData
	}
	ev := &attest.Evidence{Quote: q.Raw, VMConfig: answer.VMConfig}
	if answer.EventLog != "" {
		ev.EventLog = []byte(answer.EventLog)
		if _, err := eventlog.Parse(ev.EventLog); err != nil {
			return nil, err //nolint:wrapcheck // it says what was read
		}
	}
	return ev, nil
}

type reportData struct {
	ReportData string `json:"report_data"`
}

func reportDataRequest(rd attest.ReportData) reportData {
	b := rd.Bytes()
	return reportData{hex.EncodeToString(b[:])}
}

func (c client) info(ctx context.Context) (*Info, error) {
	b, err := c.call(ctx, "Info", struct{}{})
	if err != nil {
		return nil, err
	}
	info, err := decodeInfo(b)
	if err != nil {
		return nil, fmt.Errorf("Info: %w", err)
	}
	return info, nil
}

// decodeInfo reads Info in the shapes of different agents: the hash of the
// image may stand by itself, in the machine's description, or in the TCB info.
func decodeInfo(body []byte) (*Info, error) {
	var answer struct {
		VMConfig    looseText `json:"vm_config"`
		TCBInfo     looseText `json:"tcb_info"`
		OSImageHash string    `json:"os_image_hash"`
		AppID       string    `json:"app_id"`
		InstanceID  string    `json:"instance_id"`
		ComposeHash string    `json:"compose_hash"`
	}
	if err := decode(body, &answer); err != nil {
		return nil, err
	}
	info := &Info{VMConfig: string(answer.VMConfig)}
	for _, text := range []looseText{answer.VMConfig, answer.TCBInfo} {
		var inner struct {
			OSImageHash string `json:"os_image_hash"`
		}
		// Only the hash is wanted: a text of another shape has none.
		if answer.OSImageHash == "" && json.Unmarshal([]byte(text), &inner) == nil {
			answer.OSImageHash = inner.OSImageHash
		}
	}
	for _, f := range []struct {
		name, text string
		dst        *[]byte
	}{
		{"os_image_hash", answer.OSImageHash, &info.OSImageHash},
		{"app_id", answer.AppID, &info.AppID},
		{"instance_id", answer.InstanceID, &info.InstanceID},
		{"compose_hash", answer.ComposeHash, &info.ComposeHash},
	} {
		b, err := unhex(f.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		*f.dst = b
	}
	return info, nil
}

// looseText is JSON text, given as a string or as the value itself.
type looseText string

// UnmarshalJSON implements [json.Unmarshaler].
func (l *looseText) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil { // null, too: it leaves s empty
		*l = looseText(s)
		return nil
	}
	*l = looseText(b)
	return nil
}

// unhex decodes hex with or without 0x.
func unhex(s string) ([]byte, error) {
	b, err := hex.DecodeString(strings.TrimPrefix(s, "0x"))
	if err != nil {
		return nil, errors.New("want hex")
	}
	return b, nil
}
