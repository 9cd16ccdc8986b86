package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// envPrefix begins every environment variable that sets a key: the path of the
// key in capitals, dots turned into underscores, follows.
const envPrefix = "DSTACK_KMS_"

// envAlias is a variable with a name of its own that sets a key.
type envAlias struct{ name, path string }

// aliases returns the other names of keys, weakest first. They belong to other
// programs too, so an empty one is not taken for "no token". The names that begin
// with KMS_ are those of the configuration bootstrap of existing KMSs; no other
// KMS_ variable is looked at, because platforms set such names themselves.
func aliases() []envAlias {
	return []envAlias{
		{"KMS_USE_BOOTSTRAP_SERVER", "core.bootstrap_server.enabled"},
		{"KMS_BOOTSTRAP_SERVER_PORT", "core.bootstrap_server.port"},
		{"KMS_BOOTSTRAP_SERVER_COMMON_NAME", "core.bootstrap_server.common_name"},
		{"KMS_BOOTSTRAP_SERVER_SUBJECT", "core.bootstrap_server.subject"},
		{"KMS_BOOTSTRAP_SERVER_EXPIRATION_DAYS", "core.bootstrap_server.expiration_days"},
		{"KMS_ENSURE_RA_TLS", "core.bootstrap_server.ensure_ra_tls"},
		{"KMS_BOOTSTRAP_SERVER_TOKEN", "core.bootstrap_server.token"},
		{"KMS_BOOTSTRAP_SERVER_TOKEN_FILE", "core.bootstrap_server.token_file"},
		{"KMS_BOOTSTRAP_SERVER_AUTHORITY_CERT_FILE", "core.bootstrap_server.authority_cert_file"},
		{"ADMIN_API_TOKEN", "core.admin.auth_token"},
		{"DSTACK_KMS_ADMIN_TOKEN", "core.admin.auth_token"},
		{"DSTACK_AGENT_ADDRESS", "core.attestation.agent_address"},
	}
}

// kubernetes matches what Kubernetes puts into the environment of every pod for
// a Service that is called dstack-kms.
func kubernetes() *regexp.Regexp {
	return regexp.MustCompile(`^DSTACK_KMS_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT|PORT_[0-9]+_.*)$`)
}

// envName returns the variable that sets path.
func envName(path string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(path))
}

// applyEnviron sets what the environment says and returns what is wrong with
// it. Exact names win over aliases, and everything else that begins with the
// prefix is refused, Kubernetes' own variables excepted.
func (s *schema) applyEnviron(environ []string, o origins) []string {
	env := parseEnviron(environ)
	var problems []string
	set := func(name string, f *field) {
		if err := f.set(env[name]); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %s: %v", name, f.path, err))
			return
		}
		o[f.path] = name
		s.yield(f.path, o)
	}
	for _, a := range aliases() {
		if env[a.name] != "" {
			set(a.name, s.byPath[a.path])
		}
	}
	known := s.byEnvName()
	foreign := kubernetes()
	for _, name := range sortedNames(env) {
		f, ok := known.lookup(name)
		switch {
		case ok && f.ignored():
			o[f.path] = name
		case ok:
			set(name, f)
		case foreign.MatchString(name) || isAlias(name):
		case strings.HasPrefix(name, envPrefix):
			problems = append(problems, known.unknown(name))
		}
	}
	return problems
}

// applyFlags sets what the command line says and returns what is wrong with it.
func (s *schema) applyFlags(flags []Flag, o origins) []string {
	var problems []string
	for _, flag := range flags {
		f := s.byPath[flag.Path]
		if f == nil {
			problems = append(problems, fmt.Sprintf("%s: no such key: %s", flag.Name, flag.Path))
			continue
		}
		if err := f.set(flag.Value); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %s: %v", flag.Name, f.path, err))
			continue
		}
		o[f.path] = flag.Name
		s.drop(otherHalf(f.path), o, "--")
	}
	return problems
}

// yield drops the other half of a pair NAME and NAME_file that the file set when
// the environment sets one of them: the environment wins over the file.
func (s *schema) yield(path string, o origins) {
	s.drop(otherHalf(path), o, envPrefix)
	for _, other := range alternatives(path) {
		s.drop(other, o, envPrefix)
	}
}

// otherHalf is the key that goes by twos with path: NAME of NAME_file, NAME_file
// of NAME.
func otherHalf(path string) string {
	if half, ok := strings.CutSuffix(path, "_file"); ok {
		return half
	}
	return path + "_file"
}

// drop unsets a key, unless what set it has the prefix keep.
func (s *schema) drop(path string, o origins, keep string) {
	f, ok := s.byPath[path]
	if at := o[path]; ok && at != "" && !strings.HasPrefix(at, keep) {
		f.value.SetZero()
		delete(o, path)
	}
}

// envSchema is the schema by names of variables.
type envSchema struct {
	byName map[string]*field
	names  []string
}

func (s *schema) byEnvName() *envSchema {
	e := &envSchema{byName: map[string]*field{}}
	for _, f := range s.order {
		if !f.table {
			name := envName(f.path)
			e.byName[name] = f
			e.names = append(e.names, name)
		}
	}
	return e
}

// lookup finds the field of a variable; one that takes any keys below itself,
// such as rpc.limits, takes their variables too.
func (e *envSchema) lookup(name string) (*field, bool) {
	if f, ok := e.byName[name]; ok {
		return f, true
	}
	for _, known := range e.names {
		if strings.HasSuffix(known, "_LIMITS") && strings.HasPrefix(name, known+"_") && e.byName[known].ignored() {
			return e.byName[known], true
		}
	}
	return nil, false
}

func (e *envSchema) unknown(name string) string {
	text := "unknown environment variable " + name
	if len(name) > maxNearest {
		return text
	}
	rest := strings.ToUpper(strings.TrimPrefix(name, envPrefix))
	best, distance := "", len(rest)/3+2
	for _, known := range e.names {
		if d := editDistance(rest, strings.TrimPrefix(known, envPrefix)); d < distance {
			best, distance = known, d
		}
	}
	if best != "" {
		text += "; did you mean " + best + "?"
	}
	return text
}

func isAlias(name string) bool {
	return slices.ContainsFunc(aliases(), func(a envAlias) bool { return a.name == name })
}

// parseEnviron splits NAME=VALUE; of a repeated name the last one counts.
func parseEnviron(environ []string) map[string]string {
	env := map[string]string{}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok {
			env[name] = value
		}
	}
	return env
}

func sortedNames(env map[string]string) []string {
	names := make([]string, 0, len(env))
	for name := range env {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
