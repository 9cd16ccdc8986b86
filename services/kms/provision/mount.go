package provision

import (
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	provisionv1 "teekms/gen/provision/v1"
	"teekms/gen/provision/v1/provisionv1connect"
	"teekms/internal/rpc"
	"teekms/internal/serve"
)

// MaxMessage bounds a message of the RPCs, in bytes: a PKCS#12 file of the
// greatest size, in hexadecimal.
const MaxMessage = 2*maxUpload + 4<<10

// MaxConnections is how many connections at once are enough for this service: a
// bound for its listener (serve.Limits), because each may hold a message.
const MaxConnections = 64

// MaxStreams is the same for the calls at once on one HTTP/2 connection, each of
// which may hold a message too.
const MaxStreams = 4

// answerTime is what a call gets beyond the time that its Apply may take.
const answerTime = 5 * time.Second

// errWaiting is what /ready says.
var errWaiting = errors.New("waiting for configuration")

func descriptor() protoreflect.ServiceDescriptor {
	return provisionv1.File_provision_v1_provision_proto.Services().ByName("Provision")
}

// Mount describes how the service is served: its RPCs, its REST routes, and 503
// at /ready. limits are the chain's own settings; Access, Admit and Errors are
// filled in here.
func (s *Server) Mount(limits rpc.Config) (serve.MuxConfig, error) {
	limits.Access = rpc.Access{
		provisionv1connect.ProvisionSetDatabaseProcedure:       s.token,
		provisionv1connect.ProvisionSetPkcs12Procedure:         s.token,
		provisionv1connect.ProvisionSetPkcs12PasswordProcedure: s.token,
		provisionv1connect.ProvisionStartProcedure:             s.token,
		provisionv1connect.ProvisionGetStatusProcedure:         nil,
	}
	limits.Admit, limits.Errors = admit, s.errors
	limits.ReadMaxBytes = MaxMessage
	limits.Timeout = max(limits.Timeout, s.cfg.ApplyTimeout+answerTime)
	chain, err := rpc.New(limits)
	if err != nil {
		return serve.MuxConfig{}, err
	}
	return serve.MuxConfig{
		Chain: chain,
		Service: serve.Service{
			Descriptor: descriptor(),
			New: func(options ...connect.HandlerOption) (string, http.Handler) {
				// A password that is misspelled must not pass for none.
				options = append(options, rpc.RefuseUnknown(), connect.WithCodec(s.json))
				path, handler := provisionv1connect.NewProvisionHandler(s, options...)
				return path, s.withCaller(handler)
			},
		},
		Ready: func() error { return errWaiting },
		Pages: s.pages(),
	}, nil
}
