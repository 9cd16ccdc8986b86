package registry_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/registry"
)

// ruleLines are rules as text.
func ruleLines(rules []registry.Rule) []string {
	var out []string
	for _, r := range rules {
		out = append(out, strings.Join(strings.Fields(string(r.Kind)+" "+r.Subject+" "+r.Value), " "))
	}
	return out
}

// expand puts values for their names: a1 and a2 are application ids, h1 to h9
// hashes.
func expand(s string) string {
	var pairs []string
	for i := byte(1); i <= 9; i++ {
		pairs = append(pairs, fmt.Sprintf("a%d", i), text(id(i)), fmt.Sprintf("h%d", i), text(hash(i)))
	}
	return strings.NewReplacer(pairs...).Replace(s)
}

func TestParseAuthConfig(t *testing.T) {
	tests := []struct {
		name, text   string
		rules, notes []string
	}{
		{
			"the whole of it", `{
				"gatewayAppId": "0xA9", "kmsContractAddr": "0x00", "chainId": 1, "appImplementation": null,
				"osImages": ["0xh1", "h1", "h2"], "allowedTcbStatuses": ["UpToDate", "SWHardeningNeeded"], "allowedAdvisoryIds": ["INTEL-SA-00837"],
				"kms": {"mrAggregated": ["h3"], "devices": ["h4"], "allowAnyDevice": false},
				"apps": {"0xa1": {"composeHashes": ["0xh5"], "devices": ["h6"]}, "a2": {"composeHashes": ["h7"], "devices": ["h8"], "allowAnyDevice": true}}
			}`,
			[]string{
				"advisory INTEL-SA-00837", "app a1", "app a2", "app_compose a1 h5", "app_compose a2 h7", "app_device a1 h6", "app_device a2 h8", "app_device a2 any",
				"gateway a9", "kms h3", "kms_device h4", "os_image h1", "os_image h2", "tcb_status SWHardeningNeeded", "tcb_status UpToDate",
			},
			[]string{"kmsContractAddr decides nothing and is left out", "chainId decides nothing and is left out", "appImplementation decides nothing and is left out"},
		},
		{"nothing", `{}`, []string{"tcb_status UpToDate"}, []string{"allowedTcbStatuses is absent, which is UpToDate"}},
		{"no TCB status", `{"allowedTcbStatuses": []}`, nil, nil},
		{"any gateway", `{"allowedTcbStatuses": [], "gatewayAppId": "any"}`, []string{"gateway any"}, nil},
		{"no gateway", `{"allowedTcbStatuses": [], "gatewayAppId": ""}`, nil, nil},
		{
			"no device is any device there", `{"allowedTcbStatuses": [], "kms": {"mrAggregated": ["h1"]}, "apps": {"a1": {"composeHashes": ["h2"], "devices": []}}}`,
			[]string{"app a1", "app_compose a1 h2", "app_device a1 any", "kms h1", "kms_device any"},
			[]string{
				"kms: no device is listed, which allows any device there; here that is written any",
				"apps.a1: no device is listed, which allows any device there; here that is written any",
			},
		},
		{
			"nothing may boot anywhere", `{"allowedTcbStatuses": [], "kms": {}, "apps": {"a1": {}}}`,
			[]string{"app a1"},
			nil,
		},
		{
			"any device said so", `{"allowedTcbStatuses": [], "kms": {"allowAnyDevice": true}, "apps": {"a1": {"allowAnyDevice": true}}}`,
			[]string{"app a1", "app_device a1 any", "kms_device any"},
			nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := registry.ParseAuthConfig([]byte(strings.ReplaceAll(expand(tt.text), "A9", strings.ToUpper(text(id(9))))))
			if err != nil {
				t.Fatalf("ParseAuthConfig() = %v", err)
			}
			if diff := cmp.Diff(expand(strings.Join(tt.rules, "\n")), strings.Join(ruleLines(got.Rules), "\n")); diff != "" {
				t.Errorf("ParseAuthConfig() rules (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(expand(strings.Join(tt.notes, "\n")), strings.Join(got.Notes, "\n")); diff != "" {
				t.Errorf("ParseAuthConfig() notes (-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseAuthConfigRefuses(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"nothing", ``, "not JSON: unexpected EOF"},
		{"a list", `[]`, "want an object"},
		{"null", `null`, "want an object"},
		{"half an object", `{"osImages": [`, "osImages: not JSON"},
		{"no end", `{"osImages": []`, "not JSON: unexpected EOF"},
		{"something behind", `{} {}`, "something follows the object"},
		{"something wrong behind", `{}}`, "something follows the object"},
		{"not UTF-8", "{\"osImages\": [\"\xff\"]}", "not UTF-8"},
		{"an unknown name", `{"osImage": []}`, `unknown name "osImage"`},
		{"a name in other case", `{"OsImages": []}`, `unknown name "OsImages"`},
		{"a name with a control character", `{"\u001b[2J": []}`, `unknown name "\x1b[2J"`},
		{"an unknown name of KMSs", `{"kms": {"device": []}}`, `kms: unknown name "device"`},
		{"an unknown name of an application", `{"apps": {"a1": {"compose": []}}}`, `apps.a1: unknown name "compose"`},
		{"a name given twice", `{"osImages": [], "osImages": []}`, `"osImages" is given twice`},
		{"an application given twice", `{"apps": {"a1": {}, "0xa1": {}}}`, "apps: a1 is given twice"},
		{"a name given twice within", `{"kms": {"devices": [], "devices": []}}`, `kms: "devices" is given twice`},
		{"null for a list", `{"osImages": null}`, "osImages: want a list of strings"},
		{"a string for a list", `{"osImages": "h1"}`, "osImages: want a list of strings"},
		{"a number in a list", `{"osImages": [1]}`, "osImages[0]: want a string"},
		{"a list in a list", `{"osImages": [[]]}`, "osImages[0]: want a string"},
		{"a list for an object", `{"kms": []}`, "kms: want an object"},
		{"a string for a truth", `{"kms": {"allowAnyDevice": "true"}}`, "kms.allowAnyDevice: want true or false"},
		{"a number for a gateway", `{"gatewayAppId": 1}`, "gatewayAppId: want a string"},
		{"a gateway that is none", `{"gatewayAppId": "gateway.example.com"}`, "gatewayAppId: 19 characters, want 40"},
		{"an object for a fact", `{"chainId": {}}`, "chainId: want a single value"},
		{"a short hash", `{"osImages": ["h1", "0xabcd"]}`, "osImages[1]: 4 characters, want 64"},
		{"any image", `{"osImages": ["any"]}`, "osImages[0]: any is no value here"},
		{"a status that there is not", `{"allowedTcbStatuses": ["UPTODATE"]}`, `allowedTcbStatuses[0]: "UPTODATE" is none of`},
		{"a status that is none", `{"allowedTcbStatuses": ["Revoked"]}`, "allowedTcbStatuses[0]: Revoked cannot be allowed"},
		{"an advisory that is none", `{"allowedAdvisoryIds": ["x"]}`, `allowedAdvisoryIds[0]: "x" is not of the form`},
		{"an application id that is none", `{"apps": {"a": {}}}`, `apps: "a" is no application id: 1 characters, want 40`},
		{"a compose hash that is none", `{"apps": {"a1": {"composeHashes": ["h"]}}}`, "apps.a1.composeHashes[0]: 1 characters, want 64"},
		{"deep nesting", `{"chainId": ` + strings.Repeat("[", 1_000_000), "chainId: want a single value"},
		{"too large", strings.Repeat(" ", registry.MaxAuthConfigSize+1), "16777217 bytes, want at most"},
		{"too many values", `{"osImages": [` + strings.Repeat(`"h1",`, 1<<18) + `"h1"]}`, "too many values"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := tt.text
			if len(in) < 1<<10 {
				in = expand(in)
			}
			if tt.name == "too many values" {
				in = strings.ReplaceAll(tt.text, "h1", "UpToDate")
				in = strings.Replace(in, "osImages", "allowedTcbStatuses", 1)
			}
			got, err := registry.ParseAuthConfig([]byte(in))
			if got != nil || err == nil || !strings.Contains(err.Error(), expand(tt.want)) {
				t.Errorf("ParseAuthConfig() = %v, %v, want an error with %q", got, err, expand(tt.want))
			}
		})
	}
}

func TestFormatNeverAllowsMore(t *testing.T) {
	tests := []struct {
		name               string
		rules, back, notes []string
	}{
		{"nothing", nil, nil, nil},
		{
			"all that can be said",
			[]string{
				"advisory INTEL-SA-00837", "app a1", "app a2", "app_compose a1 h5", "app_device a1 h6", "app_device a2 any",
				"gateway a9", "kms h3", "kms_device h4", "kms_device any", "os_image h1", "tcb_status UpToDate",
			},
			[]string{
				"advisory INTEL-SA-00837", "app a1", "app a2", "app_compose a1 h5", "app_device a1 h6", "app_device a2 any",
				"gateway a9", "kms h3", "kms_device h4", "kms_device any", "os_image h1", "tcb_status UpToDate",
			},
			nil,
		},
		{"any gateway", []string{"gateway any"}, []string{"gateway any"}, nil},
		{
			"any",
			[]string{"tcb_status any", "advisory any", "os_image any", "kms any", "app a1", "app_compose a1 any", "app_device a1 any"},
			[]string{"app a1", "app_device a1 any"},
			[]string{
				"advisory: any is left out, the file has no word for it", "app_compose of a1: any is left out, the file has no word for it",
				"kms: any is left out, the file has no word for it", "os_image: any is left out, the file has no word for it",
				"tcb_status: any is left out, the file has no word for it",
			},
		},
		{
			"no device",
			[]string{"kms h1", "app a1", "app_compose a1 h2"},
			[]string{"app a1"},
			[]string{
				"all KMS measurements are left out: no device is allowed, and without one the file would allow any",
				"all compose hashes of a1 are left out: no device is allowed, and without one the file would allow any",
			},
		},
		{
			"an application that is not registered",
			[]string{"app_compose a1 h1", "app_device a1 any"},
			nil,
			[]string{
				"app_compose h1 of a1 is left out: the application is not registered",
				"app_device any of a1 is left out: the application is not registered",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var rules []registry.Rule
			for _, l := range tt.rules {
				rules = append(rules, rule(t, expand(l)))
			}
			f := registry.Format(rules)
			if diff := cmp.Diff(expand(strings.Join(tt.notes, "\n")), strings.Join(f.Notes, "\n")); diff != "" {
				t.Errorf("Format() notes (-want +got)\n%s", diff)
			}
			got, err := registry.ParseAuthConfig(f.Text)
			if err != nil || len(got.Notes) != 0 {
				t.Fatalf("ParseAuthConfig(Format()) = %v, %v in\n%s", got, err, f.Text)
			}
			var back []registry.Rule
			for _, l := range tt.back {
				back = append(back, rule(t, expand(l)))
			}
			registry.SortRules(back)
			if diff := cmp.Diff(ruleLines(back), ruleLines(got.Rules)); diff != "" {
				t.Errorf("ParseAuthConfig(Format()) (-want +got)\n%s", diff)
			}
		})
	}
}

// FuzzParseAuthConfig holds that what is read can be written, and is then read
// the same.
func FuzzParseAuthConfig(f *testing.F) {
	f.Add(`{}`)
	f.Add(expand(`{"gatewayAppId":"any","osImages":["0xh1"],"allowedTcbStatuses":["OutOfDate"],"allowedAdvisoryIds":["INTEL-SA-00837"],"chainId":1}`))
	f.Add(expand(`{"kms":{"mrAggregated":["h1"],"devices":["h2"],"allowAnyDevice":true},"apps":{"0xa1":{"composeHashes":["h3"],"devices":[]},"a2":{}}}`))
	f.Add(`{"apps":{"a":{}},"apps":{}}`)
	f.Add(`{"kms":{"allowAnyDevice":null}}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := registry.ParseAuthConfig([]byte(text))
		if err != nil {
			return
		}
		for _, r := range c.Rules {
			if again, err := registry.Canonical(r); err != nil || again != r {
				t.Fatalf("ParseAuthConfig() gives %+v, want canonical rules (%v)", r, err)
			}
		}
		file := registry.Format(c.Rules)
		if len(file.Notes) != 0 {
			t.Fatalf("Format() leaves something of a file out: %v", file.Notes)
		}
		again, err := registry.ParseAuthConfig(file.Text)
		if err != nil || len(again.Notes) != 0 {
			t.Fatalf("ParseAuthConfig(Format()) = %v, %v", again, err)
		}
		if diff := cmp.Diff(c.Rules, again.Rules); diff != "" {
			t.Errorf("ParseAuthConfig(Format()) (-want +got)\n%s", diff)
		}
	})
}
