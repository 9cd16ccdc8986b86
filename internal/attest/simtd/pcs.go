package simtd

import (
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"net/url"
	"strings"

	"teekms/internal/attest/tdx"
)

// Handler serves the collateral as Intel's provisioning certification service
// does, version 4, and as a caching service in front of one does:
//
//	GET /tdx/certification/v4/tcb?fmspc=HEX
//	GET /tdx/certification/v4/qe/identity
//	GET /sgx/certification/v4/pckcrl?ca=platform[&encoding=der|pem]
//	GET /sgx/certification/v4/rootcacrl     hex, as a PCCS answers
//	GET /IntelSGXRootCA.der                 the root's revocation list
func (t *TD) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tdx/certification/v4/tcb", t.serveTCB)
	mux.HandleFunc("GET /tdx/certification/v4/qe/identity", t.answer("application/json", func(h http.Header, c *tdx.Collateral) []byte {
		h.Set("SGX-Enclave-Identity-Issuer-Chain", escape(c.QEIdentityChain))
		return c.QEIdentity
	}))
	mux.HandleFunc("GET /sgx/certification/v4/pckcrl", t.servePCKCRL)
	mux.HandleFunc("GET /sgx/certification/v4/rootcacrl", t.answer("application/pkix-crl", func(_ http.Header, c *tdx.Collateral) []byte {
		return hex.AppendEncode(nil, c.RootCRL)
	}))
	mux.HandleFunc("GET /IntelSGXRootCA.der", t.answer("application/pkix-crl", func(_ http.Header, c *tdx.Collateral) []byte {
		return c.RootCRL
	}))
	return mux
}

func (t *TD) serveTCB(w http.ResponseWriter, r *http.Request) {
	fmspc, err := hex.DecodeString(r.URL.Query().Get("fmspc"))
	switch {
	case err != nil || len(fmspc) != len(t.m.FMSPC):
		http.Error(w, "fmspc: want 12 hex digits", http.StatusBadRequest)
	case string(fmspc) != string(t.m.FMSPC[:]):
		http.Error(w, "no TCB information for this FMSPC", http.StatusNotFound)
	default:
		t.answer("application/json", func(h http.Header, c *tdx.Collateral) []byte {
			h.Set("TCB-Info-Issuer-Chain", escape(c.TCBInfoChain))
			return c.TCBInfo
		})(w, r)
	}
}

func (t *TD) servePCKCRL(w http.ResponseWriter, r *http.Request) {
	encoding := r.URL.Query().Get("encoding")
	switch ca := tdx.CA(r.URL.Query().Get("ca")); {
	case ca == tdx.ProcessorCA:
		http.Error(w, "no such CA here", http.StatusNotFound)
	case ca != tdx.PlatformCA:
		http.Error(w, "ca: want platform or processor", http.StatusBadRequest)
	case encoding != "" && encoding != "pem" && encoding != "der":
		http.Error(w, "encoding: want pem or der", http.StatusBadRequest)
	default:
		kind := "application/pkix-crl"
		if encoding != "der" {
			kind = "application/x-pem-file"
		}
		t.answer(kind, func(h http.Header, c *tdx.Collateral) []byte {
			h.Set("SGX-PCK-CRL-Issuer-Chain", escape(c.PCKCRLChain))
			if encoding == "der" {
				return c.PCKCRL
			}
			return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: c.PCKCRL})
		})(w, r)
	}
}

// answer serves the part of the collateral that pick returns.
func (t *TD) answer(contentType string, pick func(http.Header, *tdx.Collateral) []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, err := t.collateral()
		if err != nil {
			http.Error(w, "issuing collateral failed", http.StatusInternalServerError)
			return
		}
		body := pick(w.Header(), c)
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(body) // a client that left is no concern
	}
}

// escape percent-encodes a chain for a header so that both readings of a plus
// sign give it back.
func escape(chain []byte) string {
	return strings.ReplaceAll(url.QueryEscape(string(chain)), "+", "%20")
}
