package onboard

import (
	"net/http"

	"connectrpc.com/connect"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/onboard/webui"
)

// MaxBody bounds the body of a request to this service, in bytes.
const MaxBody = 64 << 10

// finishPath ends the service on a plain GET, because the tutorials that
// operators follow say so.
const finishPath = "/finish"

// Mount describes how the service is served: its RPCs, its page and GET
// /finish. limits are the chain's own settings; Access and Errors are filled in
// here.
func (s *Service) Mount(limits rpc.Config) (serve.MuxConfig, error) {
	token := rpc.NewBearer(rpc.BearerConfig{Token: string(s.cfg.SetupToken.Bytes()), Log: s.cfg.Log, Now: s.cfg.Now})
	limits.Access = rpc.Access{
		onboardv1connect.OnboardBootstrapProcedure:          token,
		onboardv1connect.OnboardOnboardProcedure:            token,
		onboardv1connect.OnboardFinishProcedure:             token,
		onboardv1connect.OnboardGetAttestationInfoProcedure: nil,
	}
	limits.Errors = Errors()
	if limits.ReadMaxBytes <= 0 || limits.ReadMaxBytes > MaxBody {
		limits.ReadMaxBytes = MaxBody
	}
	chain, err := rpc.New(limits)
	if err != nil {
		return serve.MuxConfig{}, err
	}
	return serve.MuxConfig{
		Chain: chain,
		Service: serve.Service{
			Descriptor: onboardv1.File_onboard_v1_onboard_proto.Services().ByName("Onboard"),
			New: func(options ...connect.HandlerOption) (string, http.Handler) {
				return onboardv1connect.NewOnboardHandler(s, options...)
			},
			HexPrefix: "0x",
		},
		Pages: map[string]http.Handler{
			"/":        webui.Handler(webui.Config{Version: s.cfg.Version, SetupTokenRequired: s.cfg.SetupToken.Len() > 0}),
			finishPath: token.Require(http.HandlerFunc(s.serveFinish)),
		},
		GetAsPost: []string{finishPath},
	}, nil
}

// serveFinish is Finish for curl and old pages. A HEAD, which a ServeMux takes
// for a GET, must not finish anything.
func (s *Service) serveFinish(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		rpc.WriteError(w, http.StatusMethodNotAllowed, finishPath+" takes GET; by POST it is /prpc/Onboard.Finish")
		return
	}
	if _, err := s.Finish(r.Context(), nil); err != nil {
		rpc.WriteError(w, http.StatusBadRequest, Public(err))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("OK")) // the client may be gone
}
