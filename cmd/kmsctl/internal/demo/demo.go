// Package demo shows the whole main job on one machine, with the real programs
// and a software trust domain: bootstrap, verification, the serving KMS,
// applications that get their keys or are denied them, a second KMS, and where
// asked for, keys that are sealed.
package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"teekms/client"
	"teekms/cmd/kmsctl/internal/chain"
	"teekms/cmd/kmsctl/internal/terminal"
	onboardv1 "teekms/gen/onboard/v1"
)

// Domain is the name of the KMS. Names under localhost are everybody's own
// machine (RFC 6761 §6.3).
const Domain = "kms.localhost"

// secondDomain is the name of the KMS that is onboarded from the first.
const secondDomain = "kms-2.localhost"

// stepTimeout bounds every step.
const stepTimeout = 30 * time.Second

// Simulated is the one line that says what a software trust domain means.
const Simulated = "The trust domain is simulated: quotes are real in form and verified for real, but the root they lead to " +
	"is a file on this machine, so they prove nothing about hardware."

// Config says how to demonstrate. All but Dir is required.
type Config struct {
	// Dir is where everything is kept, made when missing; empty is a
	// temporary directory that is removed at the end.
	Dir string
	// Exit ends after the steps instead of staying up.
	Exit bool
	// Seal seals the keys, to a passphrase, an escrow and where there is swtpm a
	// software TPM, and shows what that means.
	Seal bool
	// JSON prints one JSON object a line.
	JSON bool
	// Printer writes for people, Stdout gets JSON, Stderr logs of what failed.
	Printer        *terminal.Printer
	Stdout, Stderr io.Writer
	// Find returns the path of a program of this product; Self is that of kmsctl.
	Find func(name string) (string, error)
	Self string
	// Now is the clock.
	Now func() time.Time
}

// Run demonstrates until ctx ends, or until the steps are done. It leaves no
// process behind, nor a directory of its own making.
func Run(ctx context.Context, cfg Config) (err error) {
	d := &demo{cfg: cfg}
	if cfg.Seal {
		d.seals = &sealing{}
	}
	defer func() { err = errors.Join(err, d.cleanUp()) }()
	d.sayWhatItIs()
	for _, s := range d.steps() {
		if err := d.do(ctx, s); err != nil {
			return err
		}
	}
	if cfg.Exit {
		return nil
	}
	if err := d.sayWhatToTry(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-d.kms.ended:
		d.showLog(d.kms)
		return fmt.Errorf("dstack-kms ended: %w", d.kms.err)
	}
}

// demo is one demonstration; the steps fill it in their order.
type demo struct {
	cfg Config
	dir string
	// made says that dir is a temporary one.
	made bool

	programs          map[string]string
	onboardPort, port *reservation
	authority         *authority
	onboarder, kms    *process
	record            *onboardv1.BootstrapResponse
	root              *x509.CertPool
	pinned            *http.Client
	links             []chain.Link // of the last verification
	keys              *client.AppKeys

	// Of the second KMS.
	secondOnboardPort, secondPort *reservation
	secondOnboarder, second       *process

	// Of the second act: the second KMS again, with a configuration that it was
	// given over RA-TLS.
	mrtd                                string // of the KMS that was verified last
	thirdPort, bootstrapPort, adminPort *reservation
	third                               *process

	// Of the act about seals; nil where nothing is sealed.
	seals *sealing
}

type step struct {
	name string
	// do returns what is worth telling.
	do func(*demo, context.Context) (string, error)
}

func (d *demo) steps() []step {
	first := []step{
		{"find the programs", (*demo).findPrograms},
		{"start a webhook", (*demo).startAuthority},
		{"write the configuration", (*demo).configure},
		{"start dstack-onboard", (*demo).startOnboard},
		{"bootstrap " + Domain, (*demo).bootstrap},
		{"verify the quote", (*demo).verifyAnswer},
		{"finish setup", (*demo).finish},
		{"start dstack-kms", (*demo).startKMS},
		{"read GetMeta over TLS", (*demo).getMeta},
		{"verify the running KMS", (*demo).verifyURL},
		{"get keys as an app", (*demo).appKeys},
		{"get a certificate", (*demo).appCert},
		{"try it as a changed app", (*demo).denied},
		{"onboard a second KMS", (*demo).onboardPeer},
		{"get the same keys there", (*demo).sameKeys},
	}
	if d.seals != nil { // before the configuration, which names them
		first = slices.Insert(first, 2, step{"make the seals", (*demo).makeSeals})
	}
	return slices.Concat(first, d.secondAct(), d.sealAct())
}

// do does one step within its time and tells how it went.
func (d *demo) do(ctx context.Context, s step) error {
	begin := d.cfg.Now()
	d.links = nil
	limited, cancel := context.WithTimeout(ctx, stepTimeout)
	detail, err := s.do(d, limited)
	cancel()
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	d.tell(s.name, d.cfg.Now().Sub(begin), detail, err)
	if err == nil {
		return nil
	}
	for _, p := range d.processes() {
		if p != nil {
			d.showLog(p)
		}
	}
	return fmt.Errorf("%s: %w", s.name, err)
}

// told is a step in JSON.
type told struct {
	Step         string       `json:"step"`
	OK           bool         `json:"ok"`
	Milliseconds float64      `json:"ms"`
	Detail       string       `json:"detail"`
	Error        string       `json:"error"`
	Links        []chain.Link `json:"links,omitempty"`
}

func (d *demo) tell(name string, took time.Duration, detail string, err error) {
	if d.cfg.JSON {
		t := told{Step: name, OK: err == nil, Milliseconds: float64(took.Microseconds()) / 1000, Detail: detail, Links: d.links}
		if err != nil {
			t.Error = err.Error()
		}
		d.writeJSON(t)
		return
	}
	mark := terminal.Good
	if err != nil {
		mark, detail = terminal.Bad, err.Error()
	}
	p := d.cfg.Printer
	p.Marked(mark, name, 24, fmt.Sprintf("%6.1f ms  %s", float64(took.Microseconds())/1000, detail))
	if d.links != nil {
		report := chain.Report{Links: d.links}
		p.Indented(report.WriteLinks)
	}
}

func (d *demo) writeJSON(v any) {
	// A reader that left is told by the exit code of its own pipe.
	_ = json.NewEncoder(d.cfg.Stdout).Encode(v)
}

func (d *demo) sayWhatItIs() {
	if d.cfg.JSON {
		d.writeJSON(map[string]any{"simulated": true, "meaning": Simulated})
		return
	}
	d.cfg.Printer.Line("%s", Simulated)
	d.cfg.Printer.Line("")
}

// showLog shows the end of a server's log where something failed.
func (d *demo) showLog(p *process) {
	fmt.Fprintf(d.cfg.Stderr, "Last lines of %s:\n", p.log) //nolint:errcheck // there is no one left to tell
	for _, line := range p.tail() {
		fmt.Fprintf(d.cfg.Stderr, "    %s\n", terminal.Printable(line)) //nolint:errcheck // as above
	}
}

// cleanUp ends the servers and removes what is not to be kept.
func (d *demo) cleanUp() error {
	var errs []error
	for _, r := range []*reservation{
		d.onboardPort, d.port, d.secondOnboardPort, d.secondPort, d.thirdPort, d.bootstrapPort, d.adminPort,
	} {
		if r != nil {
			r.release()
		}
	}
	if d.pinned != nil {
		d.pinned.CloseIdleConnections()
	}
	http.DefaultClient.CloseIdleConnections()
	for _, p := range d.processes() {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	if d.authority != nil {
		errs = append(errs, d.authority.stop())
	}
	if d.seals != nil && d.seals.tpm != nil {
		d.seals.tpm.Stop()
	}
	if d.made {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

// processes are all that were started, nil for those that were not.
func (d *demo) processes() []*process {
	return []*process{d.onboarder, d.kms, d.secondOnboarder, d.second, d.third}
}

func (d *demo) path(elem ...string) string { return filepath.Join(append([]string{d.dir}, elem...)...) }

// reservation holds a free port of the loopback address until it is used.
type reservation struct {
	port int
	l    net.Listener
}

func reserve(ctx context.Context) (*reservation, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("finding a free port: %w", err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return nil, errors.Join(errors.New("finding a free port: not TCP"), l.Close())
	}
	return &reservation{addr.Port, l}, nil
}

// release frees the port. It may be called again.
func (r *reservation) release() { _ = r.l.Close() }

func (r *reservation) host() string { return fmt.Sprintf("127.0.0.1:%d", r.port) }

// pinnedTo is a client that trusts the KMS's root alone and expects this name,
// wherever it connects to.
func (d *demo) pinnedTo(domain string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true,
		IdleConnTimeout:   time.Second,
		TLSClientConfig:   &tls.Config{RootCAs: d.root, ServerName: domain, MinVersion: tls.VersionTLS13},
	}}
}
