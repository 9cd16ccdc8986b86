package kms_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/prpc"
)

// now is the time of everything that is made in tests.
func now() time.Time { return time.Now() }

// protocols are the ways to call a procedure.
func protocols() []string {
	return []string{"connect proto", "connect json", "grpc", "grpc-web", "prpc json", "prpc binary"}
}

// outcome is how a call ended for its client. Code is 0 for a success and for
// prpc, which has none.
type outcome struct {
	Code connect.Code
	Text string
}

// messageOf is a pointer to a message.
type messageOf[M any] interface {
	*M
	proto.Message
}

// invoke calls KMS.METHOD by one of the protocols. The outcome is zero when it
// succeeded.
func invoke[Req, Res any, PReq messageOf[Req], PRes messageOf[Res]](tb testing.TB, client *http.Client, url, protocol, method string, req PReq) (PRes, outcome) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	switch protocol {
	case "prpc json", "prpc binary":
		res := PRes(new(Res))
		return res, invokePRPC(ctx, tb, client, prpcCall{url: url, method: method, asJSON: protocol == "prpc json", req: req, res: res})
	}
	options := map[string][]connect.ClientOption{
		"connect json": {connect.WithProtoJSON()}, "grpc": {connect.WithGRPC()}, "grpc-web": {connect.WithGRPCWeb()},
	}[protocol]
	c := connect.NewClient[Req, Res](client, url+"/kms.v1.KMS/"+method, options...)
	res, err := c.CallUnary(ctx, connect.NewRequest((*Req)(req)))
	if err != nil {
		e, ok := errors.AsType[*connect.Error](err)
		if !ok {
			tb.Fatal(err)
		}
		return nil, outcome{Code: e.Code(), Text: e.Message()}
	}
	return res.Msg, outcome{}
}

type prpcCall struct {
	url, method string
	asJSON      bool
	req, res    proto.Message
}

func codec(tb testing.TB) *prpc.Codec {
	tb.Helper()
	c, err := prpc.NewCodec(kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS"), "")
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func invokePRPC(ctx context.Context, tb testing.TB, client *http.Client, c prpcCall) outcome {
	tb.Helper()
	jsonCodec := codec(tb)
	target, marshal, unmarshal := c.url+"/prpc/"+c.method, proto.Marshal, proto.Unmarshal
	if c.asJSON {
		target += "?json"
		marshal = func(m proto.Message) ([]byte, error) { return jsonCodec.Marshal(m) }
		unmarshal = func(b []byte, m proto.Message) error { return jsonCodec.Unmarshal(b, m) }
	}
	body, err := marshal(c.req)
	if err != nil {
		tb.Fatal(err)
	}
	status, answer := post(ctx, tb, client, target, body)
	switch {
	case status == http.StatusOK:
		if err := unmarshal(answer, c.res); err != nil {
			tb.Fatal(err)
		}
		return outcome{}
	case status != http.StatusBadRequest:
		tb.Fatalf("status = %d, want 200 or 400: %s", status, answer)
	}
	if !c.asJSON {
		// Field 1 of an error is its text, as that of GetKmsKeyRequest is.
		var e kmsv1.GetKmsKeyRequest
		if err := proto.Unmarshal(answer, &e); err != nil {
			tb.Fatal(err)
		}
		return outcome{Text: e.GetVmConfig()}
	}
	var e struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(answer, &e); err != nil {
		tb.Fatalf("error body %s: %v", answer, err)
	}
	return outcome{Text: e.Error}
}

func post(ctx context.Context, tb testing.TB, client *http.Client, target string, body []byte) (int, []byte) {
	tb.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return res.StatusCode, b
}

// expect checks an outcome; prpc has no codes.
func (o outcome) expect(tb testing.TB, protocol string, want outcome) {
	tb.Helper()
	if protocol == "prpc json" || protocol == "prpc binary" {
		want.Code = 0
	}
	if o != want {
		tb.Errorf("outcome = %v %q, want %v %q", o.Code, o.Text, want.Code, want.Text)
	}
}
