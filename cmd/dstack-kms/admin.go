package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"teekms/internal/config"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

// maxHtpasswd bounds an htpasswd file, in bytes.
const maxHtpasswd = 1 << 20

// adminHandler answers on the listener of administrators.
func (s *kmsServer) adminHandler() (http.Handler, error) {
	c := kms.AdminConfig{Images: s.images, Audit: s.audit, Registry: s.policy}
	if s.Config.Core.KMSKeyRelease == config.ReleaseAdmin {
		c.ReleaseRoots = s.service.ReleaseRoots
	}
	admin, err := kms.NewAdmin(c)
	if err != nil {
		return nil, err
	}
	limits := s.CallLimits()
	limits.Access, limits.Errors, limits.Admit, limits.Observe = kms.AdminAccess(), kms.AdminErrors(), s.adminPeers.Admit, s.service.Observe
	chain, err := rpc.New(limits)
	if err != nil {
		return nil, err
	}
	handler, err := serve.NewMux(serve.MuxConfig{
		Service: admin.RPC(), Chain: chain, Ready: s.ready, Header: s.version(),
	})
	if err != nil || s.Config.Core.Admin.InsecureNoAuth {
		return handler, err
	}
	credentials, err := s.credentials()
	if err != nil {
		return nil, err
	}
	return credentials.Require(handler), nil
}

// credentials are those that the configuration names.
func (s *kmsServer) credentials() (*kms.Credentials, error) {
	c := s.Config.Core.Admin
	htpasswd, err := readHtpasswd(c.HtpasswdFile)
	if err != nil {
		return nil, fmt.Errorf("core.admin.htpasswd_file: %w", err)
	}
	credentials, err := kms.NewCredentials(kms.CredentialsConfig{
		Token: c.AuthToken, Htpasswd: htpasswd, Log: s.Log, Now: time.Now,
	})
	if err != nil {
		return nil, fmt.Errorf("core.admin: %w", err)
	}
	return credentials, nil
}

// readHtpasswd reads a file that may be unset.
func readHtpasswd(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(f, maxHtpasswd+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxHtpasswd {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxHtpasswd)
	}
	return text, nil
}
