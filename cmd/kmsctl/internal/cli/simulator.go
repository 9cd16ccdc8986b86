package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
)

// simulatorFlags are the flags of kmsctl simulator.
type simulatorFlags struct {
	dir, listen string
	image, mrtd string
	json        bool
}

// simulatorFacts is what kmsctl simulator prints before it serves.
type simulatorFacts struct {
	Simulated       bool   `json:"simulated"`
	URL             string `json:"url"`
	Dir             string `json:"dir"`
	TrustRoot       string `json:"trust_root"`
	TrustRootSHA256 string `json:"trust_root_sha256"`
	MRTD            string `json:"mrtd"`
}

func newSimulator(env Environment) *cobra.Command {
	var f simulatorFlags
	cmd := &cobra.Command{
		Use:   "simulator --dir DIR",
		Short: "Serve the collateral of a software trust domain",
		Long: `Open a software trust domain, made in DIR when there is none, and serve its
collateral over HTTP as a PCS does, until interrupted.

A software trust domain is a directory of keys that signs quotes in the real
format. Who reads the directory can sign any quote: it is for development and
tests. A verifier believes it only where its root is named as trust root.`,
		Example: `  kmsctl simulator --dir td --listen 127.0.0.1:8081
  kmsctl verify --dir certs --trust-root td/root-ca.pem --pccs http://127.0.0.1:8081`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.dir, "dir", "", "`directory` of the software trust domain; made when missing (required)")
	fs.StringVar(&f.listen, "listen", "127.0.0.1:8081", "serve on this `address`; port 0 takes a free one")
	fs.StringVar(&f.image, "image", "", "`name` of the OS image from which measurements are derived; kept in the directory")
	fs.StringVar(&f.mrtd, "mrtd", "", "MRTD of the trust domain, 96 `hex` digits; kept in the directory")
	fs.BoolVar(&f.json, "json", false, "print the facts as JSON")
	complete(cmd, "dir", directory())
	complete(cmd, "listen", valueOf("127.0.0.1:8081"))
	complete(cmd, "image", valueOf())
	complete(cmd, "mrtd", valueOf())
	return cmd
}

func (f *simulatorFlags) run(cmd *cobra.Command, env Environment) error {
	if f.dir == "" {
		return usagef(cmd, "--dir is required")
	}
	if _, _, err := net.SplitHostPort(f.listen); err != nil {
		return usagef(cmd, "--listen: %w", err)
	}
	m, err := f.measurements(cmd)
	if err != nil {
		return err
	}
	td, err := simtd.Open(simtd.Config{Dir: f.dir, Measurements: m, Now: env.Now})
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(cmd.Context(), "tcp", f.listen)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	if err := f.print(env, factsOf(td, f.dir, l.Addr())); err != nil {
		return errors.Join(err, l.Close())
	}
	return serveUntilDone(cmd.Context(), l, td.Handler())
}

func (f *simulatorFlags) measurements(cmd *cobra.Command) (simtd.Measurements, error) {
	m := simtd.Measurements{Image: f.image}
	if f.mrtd == "" {
		return m, nil
	}
	b, err := hex.DecodeString(f.mrtd)
	if err != nil || len(b) != attest.MeasurementSize {
		return m, usagef(cmd, "--mrtd: want %d hex digits", 2*attest.MeasurementSize)
	}
	m.MRTD = attest.Measurement(b)
	return m, nil
}

func factsOf(td *simtd.TD, dir string, addr net.Addr) simulatorFacts {
	digest := sha256.Sum256(td.Root().Raw)
	mrtd := td.Measurements().MRTD
	root := td.RootPath()
	// Others are to use these paths, from directories of their own.
	if abs, err := filepath.Abs(root); err == nil {
		root = abs
	}
	return simulatorFacts{
		Simulated: true, URL: "http://" + addr.String(), Dir: dir,
		TrustRoot: root, TrustRootSHA256: hex.EncodeToString(digest[:]), MRTD: hex.EncodeToString(mrtd[:]),
	}
}

func (f *simulatorFlags) print(env Environment, facts simulatorFacts) error {
	if f.json {
		return env.writeJSON(facts)
	}
	p := env.printer()
	p.Line("This trust domain is simulated: whoever reads %s can sign any quote under its root.", facts.Dir)
	p.Line("Trust root  %s", facts.TrustRoot)
	p.Line("SHA-256     %s", facts.TrustRootSHA256)
	p.Line("MRTD        %s", facts.MRTD)
	p.Line("Serving     %s", facts.URL)
	return p.Err()
}

// serveUntilDone serves until ctx ends, and then finishes what is in flight.
func serveUntilDone(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       20 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	// ctx has ended; what is in flight may still finish.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := srv.Shutdown(drain)
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
