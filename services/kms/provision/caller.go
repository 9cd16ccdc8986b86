package provision

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"slices"

	"teekms/gen/provision/v1/provisionv1connect"
)

// Ways in which a caller may have shown that it may configure.
const (
	byToken       = "token"
	byCertificate = "certificate"
	byBoth        = "token and certificate"
	byAnyone      = "anyone"
)

// Caller is who asked for something.
type Caller struct {
	// Means is what was asked of it: "token", "certificate", "token and
	// certificate" or "anyone".
	Means string
	// Peer is its address.
	Peer string
	// Certificate is the SHA-256 of its certificate in hexadecimal, empty where
	// none was asked for.
	Certificate string
	// CommonName is that certificate's.
	CommonName string
}

// String says it on one line.
func (c Caller) String() string {
	text := c.Means + " from " + c.Peer
	if c.Certificate != "" {
		text += " with certificate " + c.Certificate
	}
	return text
}

// known is a caller and what it may do.
type known struct {
	Caller
	// trusted means that it may configure.
	trusted bool
	// err refuses the call.
	err error
}

type knownKey struct{}

// callerOf returns the caller of the call that ctx belongs to. Without one it is
// somebody who may nothing.
func callerOf(ctx context.Context) known {
	k, _ := ctx.Value(knownKey{}).(known)
	return k
}

// means is what callers are asked for.
func (s *Server) means() string {
	switch {
	case s.token != nil && s.cfg.ClientCAs != nil:
		return byBoth
	case s.token != nil:
		return byToken
	case s.cfg.ClientCAs != nil:
		return byCertificate
	}
	return byAnyone
}

// know looks at the token, where checkToken says so, and at the certificate.
func (s *Server) know(r *http.Request, checkToken bool) known {
	k := known{Caller: Caller{Means: s.means(), Peer: r.RemoteAddr}}
	if checkToken {
		if k.err = s.token.Check(r.Header, r.RemoteAddr); k.err != nil {
			return k
		}
	}
	if s.cfg.ClientCAs != nil {
		leaf, err := clientLeaf(r.TLS)
		if err != nil {
			k.err = err
			return k
		}
		digest := sha256.Sum256(leaf.Raw)
		k.Certificate, k.CommonName = hex.EncodeToString(digest[:]), leaf.Subject.CommonName
	}
	k.trusted = true
	return k
}

// knowReader is know for GetStatus, which everybody may ask. A wrong token is
// refused all the same: else it could be guessed here.
func (s *Server) knowReader(r *http.Request) known {
	if s.token != nil && len(r.Header["Authorization"]) == 0 {
		return known{Caller: Caller{Means: s.means(), Peer: r.RemoteAddr}}
	}
	k := s.know(r, true)
	if s.token == nil {
		k.err = nil // for want of a certificate: it reads what everybody may
	}
	return k
}

// clientLeaf returns the client's certificate, which crypto/tls has verified.
func clientLeaf(state *tls.ConnectionState) (*x509.Certificate, error) {
	if state == nil || len(state.VerifiedChains) == 0 || len(state.PeerCertificates) == 0 {
		return nil, errNoCertificate
	}
	leaf := state.PeerCertificates[0]
	switch {
	case leaf.Subject.CommonName == "":
		return nil, errNoName
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		// crypto/tls lets a certificate without any usage pass.
		return nil, errNoClientAuth
	}
	return leaf, nil
}

// withCaller has the handler of the RPCs know who calls. The token of all but
// GetStatus is checked by the chain, before the message is read.
func (s *Server) withCaller(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var k known
		if r.URL.Path == provisionv1connect.ProvisionGetStatusProcedure {
			k = s.knowReader(r)
		} else {
			k = s.know(r, false)
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), knownKey{}, k)))
	})
}

// admit is rpc.Config.Admit.
func admit(ctx context.Context) (context.Context, error) { return ctx, callerOf(ctx).err }

// TLSConfig returns the configuration of the listener: TLS 1.3, the
// certificate, and the client authorities where there are any. A client without
// a certificate can connect, for GetStatus and health.
func (s *Server) TLSConfig(certificate tls.Certificate) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}}
	if s.cfg.ClientCAs != nil {
		c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, s.cfg.ClientCAs
	}
	return c
}
