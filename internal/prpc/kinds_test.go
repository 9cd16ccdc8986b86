package prpc_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"teekms/internal/prpc"
)

// kindsService describes a service whose one method, without side effects,
// takes and gives a message with a field of each kind, and itself.
func kindsService(t *testing.T, kinds ...descriptorpb.FieldDescriptorProto_Type) protoreflect.ServiceDescriptor {
	t.Helper()
	message := &descriptorpb.DescriptorProto{Name: proto.String("M")}
	add := func(name string, kind descriptorpb.FieldDescriptorProto_Type, label descriptorpb.FieldDescriptorProto_Label) {
		f := &descriptorpb.FieldDescriptorProto{
			// Numbers fall, so that the order of declaration is not that of numbers.
			Name: proto.String(name), Number: proto.Int32(int32(100 - len(message.Field))), Type: kind.Enum(), Label: label.Enum(),
		}
		if kind == descriptorpb.FieldDescriptorProto_TYPE_MESSAGE {
			f.TypeName = proto.String(".t.M")
		}
		if kind == descriptorpb.FieldDescriptorProto_TYPE_ENUM {
			f.TypeName = proto.String(".t.E")
		}
		message.Field = append(message.Field, f)
	}
	for _, kind := range kinds {
		name := strings.ToLower(strings.TrimPrefix(kind.String(), "TYPE_"))
		add("one_"+name, kind, descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL)
		add("many_"+name, kind, descriptorpb.FieldDescriptorProto_LABEL_REPEATED)
	}
	fd, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("t.proto"), Package: proto.String("t"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{message},
		EnumType: []*descriptorpb.EnumDescriptorProto{{
			Name: proto.String("E"), Value: []*descriptorpb.EnumValueDescriptorProto{{Name: proto.String("ZERO"), Number: proto.Int32(0)}},
		}},
		Service: []*descriptorpb.ServiceDescriptorProto{{
			Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{{
				Name: proto.String("Get"), InputType: proto.String(".t.M"), OutputType: proto.String(".t.M"),
				Options: &descriptorpb.MethodOptions{IdempotencyLevel: descriptorpb.MethodOptions_NO_SIDE_EFFECTS.Enum()},
			}},
		}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fd.Services().Get(0)
}

func scalarKinds() []descriptorpb.FieldDescriptorProto_Type {
	return []descriptorpb.FieldDescriptorProto_Type{
		descriptorpb.FieldDescriptorProto_TYPE_INT32, descriptorpb.FieldDescriptorProto_TYPE_SINT64,
		descriptorpb.FieldDescriptorProto_TYPE_UINT32, descriptorpb.FieldDescriptorProto_TYPE_FIXED64,
		descriptorpb.FieldDescriptorProto_TYPE_BOOL, descriptorpb.FieldDescriptorProto_TYPE_STRING,
		descriptorpb.FieldDescriptorProto_TYPE_BYTES, descriptorpb.FieldDescriptorProto_TYPE_MESSAGE,
	}
}

func TestEveryKind(t *testing.T) {
	sd := kindsService(t, scalarKinds()...)
	codec := newCodec(t, sd, "0x")
	// By number, which here is the reverse of the declaration.
	const text = `{"many_message":[{"many_message":[],"one_message":null,"many_bytes":[],"one_bytes":"0x","many_string":[],"one_string":"",` +
		`"many_bool":[],"one_bool":false,"many_fixed64":[],"one_fixed64":0,"many_uint32":[],"one_uint32":0,"many_sint64":[],"one_sint64":0,` +
		`"many_int32":[],"one_int32":7}],"one_message":null,"many_bytes":["0x","0xff"],"one_bytes":"0x00","many_string":["","a\u0000\u007f\"\\\t\r\n€"],` +
		`"one_string":"</x>","many_bool":[true,false],"one_bool":true,"many_fixed64":[18446744073709551615],"one_fixed64":9007199254740993,` +
		`"many_uint32":[4294967295],"one_uint32":1,"many_sint64":[-9223372036854775808,9223372036854775807],"one_sint64":-1,` +
		`"many_int32":[-2147483648,2147483647],"one_int32":-7}`
	m := dynamicpb.NewMessage(sd.Methods().Get(0).Input())
	if err := codec.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	got, err := codec.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, string(got)); diff != "" {
		t.Errorf("written again (-want +got):\n%s", diff)
	}
	refusals := map[string]string{
		`{"one_int32":2147483648}`:             "one_int32: want an integer of 32 bits",
		`{"one_sint64":9223372036854775808}`:   "one_sint64: want an integer of 64 bits",
		`{"one_uint32":-1}`:                    "one_uint32: want an integer from 0 to 4294967295",
		`{"many_bool":[1]}`:                    "many_bool[0]: want true or false, not a number",
		`{"many_message":[null]}`:              "many_message[0]: want a JSON object, not null",
		`{"many_message":[{"one_bool":null}]}`: "many_message[0].one_bool: want true or false, not null",
		`{"one_bool":[true]}`:                  "one_bool: want true or false, not an array",
		`{"one_string":true}`:                  "one_string: want a string, not true or false",
	}
	for body, want := range refusals {
		err := codec.Unmarshal([]byte(body), dynamicpb.NewMessage(sd.Methods().Get(0).Input()))
		if err == nil || err.Error() != want {
			t.Errorf("Unmarshal(%s) = %v, want %s", body, err, want)
		}
	}
}

func TestKindsWithoutAForm(t *testing.T) {
	for _, kind := range []descriptorpb.FieldDescriptorProto_Type{
		descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, descriptorpb.FieldDescriptorProto_TYPE_FLOAT, descriptorpb.FieldDescriptorProto_TYPE_ENUM,
	} {
		if _, err := prpc.NewCodec(kindsService(t, kind), ""); err == nil || !strings.Contains(err.Error(), "has no form in prpc") {
			t.Errorf("NewCodec with %s = %v, want a refusal", kind, err)
		}
	}
}

// TestQueries looks at the request that Connect gets.
func TestQueries(t *testing.T) {
	sd := kindsService(t, scalarKinds()...)
	codec := newCodec(t, sd, "")
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m := dynamicpb.NewMessage(sd.Methods().Get(0).Input())
		if err := codec.Unmarshal(body, m); err != nil {
			t.Errorf("the request %s cannot be read: %v", body, err)
		}
		_, _ = fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL, r.Header.Get("Content-Type"), body)
	})
	h, err := prpc.New(prpc.Config{Service: sd, Next: echo, Codec: codec})
	if err != nil {
		t.Fatal(err)
	}
	const head = "POST /t.S/Get application/prpc-json "
	tests := []struct{ query, want string }{
		{"", head},
		{"json", head + `{}`},
		{"one_int32=-5&one_fixed64=18446744073709551615", head + `{"one_int32":-5,"one_fixed64":18446744073709551615}`},
		{"one_bool=true&one_string=a%22+%2b", head + `{"one_bool":true,"one_string":"a\" +"}`},
		{"one_string=null&one_bytes=0xff", head + `{"one_string":"null","one_bytes":"0xff"}`},
		{"one_string", head + `{"one_string":""}`},
		{"one_int32=1e3", `{"error": "one_int32: want an integer of 32 bits"}`},
		{"one_int32=", `{"error": "one_int32: want an integer of 32 bits"}`},
		{"one_int32=007", `{"error": "one_int32: want an integer without leading zeros"}`},
		{"one_int32=%2B7", `{"error": "one_int32: want an integer without leading zeros"}`},
		{"one_bool=1", `{"error": "one_bool: want true or false"}`},
		{"many_int32=1", `{"error": "many_int32: cannot be given in a query: use POST"}`},
		{"one_message=1", `{"error": "one_message: cannot be given in a query: use POST"}`},
		{"one_string=%ff", `{"error": "one_string: wrong percent-encoding"}`},
		{"%zz=1", `{"error": "query: wrong percent-encoding of a name"}`},
	}
	for _, tt := range tests {
		if got := do(t, h, http.MethodGet, "/prpc/S.Get?"+tt.query, "").body; got != tt.want {
			t.Errorf("GET ?%s = %s, want %s", tt.query, got, tt.want)
		}
	}
}

func TestHeadersThatStayBehind(t *testing.T) {
	sd := kindsService(t, descriptorpb.FieldDescriptorProto_TYPE_BOOL)
	var got http.Header
	next := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	h, err := prpc.New(prpc.Config{Service: sd, Next: next, Codec: newCodec(t, sd, "")})
	if err != nil {
		t.Fatal(err)
	}
	do(t, h, http.MethodPost, "/prpc/Get", "", "Authorization", "Bearer x", "Accept-Encoding", "gzip",
		"Connect-Timeout-Ms", "1", "Grpc-Timeout", "1n", "Content-Encoding", "identity", "User-Agent", "u")
	want := http.Header{"Authorization": {"Bearer x"}, "User-Agent": {"u"}, "Content-Type": {"application/proto"}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}
