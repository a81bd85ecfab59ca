package ssh

import (
	"fmt"
	"strconv"
	"strings"

	"launcher/backends"
	"launcher/internal/errs"
)

// site is a host as a pool means it, with everything that reaching it takes. It is the
// same value for the same way to the same host.
type site struct {
	Name       string `json:"name"` // as the spec has it, for people
	Host       string `json:"host"`
	User       string `json:"user,omitempty"`
	Port       int    `json:"port,omitempty"`
	Jump       string `json:"jump,omitempty"`
	Identity   string `json:"identity,omitempty"`
	KnownHosts string `json:"known_hosts,omitempty"`
	Config     string `json:"ssh_config,omitempty"`
	Transport  string `json:"transport,omitempty"`
	Directory  string `json:"directory,omitempty"` // on the host
}

// keys are the options of an ssh pool. The loader has checked their values (package
// configs); here is what it cannot have seen.
var keys = []string{"hosts", "user", "port", "identity", "jump", "known_hosts", "ssh_config", "transport", "directory"}

// Check finds what is wrong with a pool's own keys.
func (b *Backend) Check(o backends.Options) []backends.Fault {
	var faults []backends.Fault
	bad := func(key, format string, args ...any) {
		faults = append(faults, backends.Fault{Key: key, Msg: fmt.Sprintf(format, args...)})
	}
	known := map[string]bool{}
	for _, k := range keys {
		known[k] = true
	}
	for k, v := range o {
		switch s, isText := v.(string); {
		case !known[k]:
			bad(k, "not a key of an ssh pool; its own keys are %s", strings.Join(keys, ", "))
		case k == "hosts":
			if len(texts(v)) == 0 {
				bad(k, `%v is no list of hosts; give one such as ["gpu[01-04]"]`, v)
			}
		case k == "port":
			if n := number(v); n < 1 || n > 65535 {
				bad(k, "%v is no port; give 1 to 65535", v)
			}
		case !isText:
			bad(k, "%v is no text", v)
		case k == "transport" && s != "" && s != "go" && s != "system":
			bad(k, "%q is no transport; give go or system", s)
		case strings.ContainsAny(s, "\x00\n\r"):
			bad(k, "%q has a line end in it", s)
		}
	}
	return faults
}

func texts(v any) (out []string) {
	switch v := v.(type) {
	case []string:
		return v
	case []any:
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil
			}
			out = append(out, s)
		}
	}
	return out
}

func number(v any) int {
	switch v := v.(type) {
	case int:
		return v
	case int64:
		return int(v)
	case uint64:
		return int(min(v, 1<<30))
	}
	return -1
}

// site says where the node of a request is to be.
func (b *Backend) site(r backends.Request) (site, error) {
	if len(r.Nodes) != 1 || len(r.Epochs) != 1 || len(r.Places) != 1 || r.Places[0] == "" {
		return site{}, errs.New(errs.Invalid, "pool %s: %d nodes and %d hosts in one request; ssh takes one node and its host", r.Pool, len(r.Nodes), len(r.Places))
	}
	return b.siteOf(r)
}

// siteOf is the host that a request names.
func (b *Backend) siteOf(r backends.Request) (site, error) {
	if faults := b.Check(r.Options); len(faults) > 0 {
		return site{}, errs.New(errs.Invalid, "pool %s: %s: %s", r.Pool, faults[0].Key, faults[0].Msg)
	}
	text := func(k string) string { s, _ := r.Options[k].(string); return s }
	host, user, port, err := b.dial.Split(r.Places[0])
	if err != nil {
		return site{}, err
	}
	s := site{Name: r.Places[0], Host: host, User: user, Port: port, Jump: text("jump"), Identity: text("identity"),
		KnownHosts: text("known_hosts"), Config: text("ssh_config"), Transport: text("transport"), Directory: text("directory")}
	if s.User == "" {
		s.User = text("user")
	}
	if p, ok := r.Options["port"]; ok && s.Port == 0 {
		s.Port = number(p)
	}
	return s, nil
}

// describe is the arguments of an ssh command that goes the same way.
func (s site) describe() string {
	var out []string
	add := func(flag, v string) {
		if v != "" {
			out = append(out, flag, v)
		}
	}
	add("-F", s.Config)
	add("-i", s.Identity)
	add("-J", s.Jump)
	add("-l", s.User)
	if s.KnownHosts != "" {
		add("-o", "UserKnownHostsFile="+s.KnownHosts)
	}
	if s.Port != 0 {
		add("-p", strconv.Itoa(s.Port))
	}
	return strings.Join(append(out, s.Host), " ")
}
