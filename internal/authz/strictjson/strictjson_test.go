package strictjson_test

import (
	"encoding/json"
	"strings"
	"testing"

	"teekms/internal/authz/strictjson"
)

func TestParse(t *testing.T) {
	o, err := strictjson.Parse([]byte(` {"s":"a\u00e9\\\"","t":true,"f":false,"n":18446744073709551615,"other":{"s":[1,{"t":null}]},"S":"case"} `), "s", "t", "f", "n", "none")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := o.Text("s"); err != nil || got != `aé\"` {
		t.Errorf("Text(s) = %q, %v, want %q", got, err, `aé\"`)
	}
	if got, err := o.Bool("t"); err != nil || !got {
		t.Errorf("Bool(t) = %v, %v, want true", got, err)
	}
	if got, err := o.Bool("f"); err != nil || got {
		t.Errorf("Bool(f) = %v, %v, want false", got, err)
	}
	if got, err := o.Uint64("n"); err != nil || got != 1<<64-1 {
		t.Errorf("Uint64(n) = %v, %v, want %d", got, err, uint64(1<<64-1))
	}
	if o.Has("none") || o.Has("other") || !o.Has("s") {
		t.Errorf("Parse() = %v, want s, t, f and n", o)
	}
}

func TestParseRefuses(t *testing.T) {
	nested := func(n int) string { return `{"x":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}" }
	tests := []struct{ name, text, want string }{
		{"nothing", "", "not JSON"},
		{"array", "[]", "want a JSON object"},
		{"null", "null", "want a JSON object"},
		{"text", `"{}"`, "want a JSON object"},
		{"cut", `{"a":1`, "not JSON"},
		{"second value", "{} {}", "not JSON"},
		{"trailing byte", "{}x", "not JSON"},
		{"not UTF-8", "{\"a\":\"\xff\"}", "not UTF-8"},
		{"name twice", `{"a":1,"a":1}`, "a: given twice"},
		{"name twice, once escaped", `{"a":1,"\u0061":1}`, "a: given twice"},
		{"too deep", nested(32), "nested deeper than 32"},
		{"much too deep", strings.Repeat(`{"a":`, 1<<20), "nested deeper than 32"},
		{"too deep after brackets in a string", `{"s":"]]]]\"]]","x":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + "}", "nested deeper than 32"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if o, err := strictjson.Parse([]byte(tt.text), "a"); err == nil || err.Error() != tt.want {
				t.Errorf("Parse(%.80s) = %v, %v, want %s", tt.text, o, err, tt.want)
			}
		})
	}
	for name, text := range map[string]string{
		"depth 32": nested(31), "brackets in a string": `{"a":"` + strings.Repeat("[", 100) + `"}`, "unknown name twice": `{"b":1,"b":2}`,
	} {
		if _, err := strictjson.Parse([]byte(text), "a"); err != nil {
			t.Errorf("Parse(%s) = %v, want nil", name, err)
		}
	}
}

func TestValuesOfAnotherType(t *testing.T) {
	const text, boolean, number = "v: want a string", "v: want true or false", "v: want an integer of 64 bits without sign"
	tests := []struct{ value, text, boolean, number string }{
		{`"true"`, "", boolean, number},
		{`true`, text, "", number},
		{`1`, text, boolean, ""},
		{`null`, text, boolean, number},
		{`[]`, text, boolean, number},
		{`{}`, text, boolean, number},
		{`-1`, text, boolean, number},
		{`1.0`, text, boolean, number},
		{`1e3`, text, boolean, number},
		{`18446744073709551616`, text, boolean, number},
		{"", "v: missing", "v: missing", "v: missing"},
	}
	for _, tt := range tests {
		t.Run(tt.value, func(t *testing.T) {
			doc := `{"v":` + tt.value + `}`
			if tt.value == "" {
				doc = "{}"
			}
			o, err := strictjson.Parse([]byte(doc), "v")
			if err != nil {
				t.Fatal(err)
			}
			_, errText := o.Text("v")
			_, errBool := o.Bool("v")
			_, errNumber := o.Uint64("v")
			for _, c := range []struct {
				name string
				err  error
				want string
			}{{"Text", errText, tt.text}, {"Bool", errBool, tt.boolean}, {"Uint64", errNumber, tt.number}} {
				if (c.err == nil) != (c.want == "") || (c.err != nil && c.err.Error() != c.want) {
					t.Errorf("%s(%s) = %v, want %q", c.name, tt.value, c.err, c.want)
				}
			}
		})
	}
}

// What is read must be what encoding/json reads of the same object.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"a":"x","b":true,"c":1}`))
	f.Add([]byte(`{"a":"\ud800","b":null,"c":1e3,"d":[[{}]]}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Add([]byte(`{"A":"x"} `))
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := strictjson.Parse(text, "a", "b", "c")
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatalf("Parse(%q) took what is no object: %v", text, err)
		}
		for name, raw := range o {
			if string(want[name]) != string(raw) {
				t.Errorf("Parse(%q)[%s] = %s, want %s", text, name, raw, want[name])
			}
		}
		if s, err := o.Text("a"); err == nil {
			var again string
			if err := json.Unmarshal(want["a"], &again); err != nil || again != s {
				t.Errorf("Text(a) of %q = %q, want %q, %v", text, s, again, err)
			}
		}
		if b, err := o.Bool("b"); err == nil && string(want["b"]) != map[bool]string{true: "true", false: "false"}[b] {
			t.Errorf("Bool(b) of %q = %v, want %s", text, b, want["b"])
		}
	})
}
