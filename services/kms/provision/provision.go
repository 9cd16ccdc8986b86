// Package provision configures a KMS over TLS before it starts: its database
// and the certificate of its HTTPS port, so that neither stands on a command
// line or on a disk (docs/configuration.md).
//
// Make a [Server] with [New], mount it with [Server.Mount] under the
// configuration of [Server.TLSConfig], whose certificate [NewCertificate] makes,
// and wait for [Server.Done]. What was received is tried by Config.Apply, once
// at a time; until that succeeds everything can be corrected.
package provision

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"teekms/internal/keys"
	"teekms/internal/prpc"
	"teekms/internal/rpc"
	"teekms/internal/storage"

	provisionv1 "teekms/gen/provision/v1"
)

// Settings are what a KMS is started with.
type Settings struct {
	// Database is the one to open. Its Root, Key, Log and Now are left to who
	// opens it.
	Database storage.Config
	// PKCS12 is the file with certificate and key of the HTTPS port; empty
	// stands for none. It is a secret because it may hold the key in clear.
	PKCS12 keys.Secret
	// PKCS12Password opens it.
	PKCS12Password keys.Secret
	// ClearDatabase has the database emptied.
	ClearDatabase bool
	// By is who asked for the start.
	By Caller
}

// Config is what a Server stands on.
type Config struct {
	// Apply tries the settings, all of them, and takes them over: nil means that
	// the KMS can start with them. Where it fails it must have changed nothing.
	// One call runs at a time, within ApplyTimeout, whether or not the caller of
	// Start waits for it. The text of a [Refusal] and those of errors that wrap
	// the sentinels of storage or a *pkcs12.Error are shown to the caller; of
	// others nothing is. Required.
	Apply func(ctx context.Context, s Settings) (warnings []string, err error)
	// Defaults hold where nothing is posted: what the command line and the
	// configuration file name. A zero Database.Type stands for no database. Of a
	// database that is posted CAFile, InsecurePlaintext and Timeout are taken
	// from here.
	Defaults Settings
	// StateDir is where relative paths of SQLite databases begin; empty refuses
	// them.
	StateDir string
	// Token is what whoever configures must present as a bearer token; empty
	// asks for none.
	Token keys.Secret
	// ClientCAs are the authorities whose client certificates may configure; nil
	// asks for no certificate. With both a token and these, both are asked for.
	ClientCAs *x509.CertPool
	// Attested says that the certificate of this server carries Evidence.
	Attested bool
	// ApplyTimeout bounds one Apply (default 100 s, which is less than
	// serve.Limits.WriteTime).
	ApplyTimeout time.Duration
	// Now is the clock (default time.Now).
	Now func() time.Time
	// Log receives state changes (default none).
	Log *zap.Logger
}

// phase is how far the configuration is.
type phase int

const (
	configuring phase = iota
	starting
	started
)

// String is what GetStatus calls it.
func (p phase) String() string { return [...]string{"configuring", "starting", "started"}[p] }

// Server is the configuration server. It implements the Provision service of
// provision.v1 and serves the REST routes. Its methods may be called from
// several goroutines.
type Server struct {
	cfg    Config
	token  *rpc.Bearer
	errors rpc.Table
	json   *prpc.Codec

	mu      sync.Mutex // guards the six fields below
	phase   phase
	now     Settings
	posted  bool   // now.Database was posted
	worded  bool   // now.PKCS12Password was posted or configured
	failed  string // why the last start failed
	closing bool   // no start may begin any more

	background sync.WaitGroup // Apply, which outlives its caller
	done       chan struct{}
}

// New returns a server that waits for settings.
func New(cfg Config) (*Server, error) {
	if cfg.Apply == nil {
		return nil, errors.New("provision: Config.Apply is required")
	}
	if cfg.ApplyTimeout <= 0 {
		cfg.ApplyTimeout = 100 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	codec, err := prpc.NewCodec(descriptor(), "")
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, errors: Errors(), json: codec.RefuseUnknown(), now: cfg.Defaults,
		worded: cfg.Defaults.PKCS12Password.Len() > 0, done: make(chan struct{}),
		token: rpc.NewBearer(rpc.BearerConfig{Token: string(cfg.Token.Bytes()), Log: cfg.Log, Now: cfg.Now}),
	}
	s.cfg.Defaults, s.cfg.Token = Settings{Database: cfg.Defaults.Database}, keys.NewSecret(nil)
	return s, nil
}

// Done is closed when the KMS may start: Apply has succeeded and the answer to
// Start is on its way. A server that is drained then still sends it.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait returns when no Apply is under way, and has none begin after that. Call it
// before the process ends.
func (s *Server) Wait() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.background.Wait()
}

// change has edit change the settings, unless it is too late for that.
func (s *Server) change(edit func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.phase {
	case starting:
		return errStarting
	case started:
		return errStarted
	default:
	}
	edit()
	return nil
}

// SetPkcs12Password notes the password of the PKCS#12 file.
func (s *Server) SetPkcs12Password(_ context.Context, req *provisionv1.SetPkcs12PasswordRequest) (*provisionv1.SetPkcs12PasswordResponse, error) {
	if err := bounded("password", req.GetPassword(), maxPassword); err != nil {
		return nil, err
	}
	password := keys.NewSecret([]byte(req.GetPassword()))
	if err := s.change(func() { s.now.PKCS12Password, s.worded = password, true }); err != nil {
		return nil, err
	}
	return &provisionv1.SetPkcs12PasswordResponse{Success: "PKCS#12 password received"}, nil
}
