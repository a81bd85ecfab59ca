// Package secure is the identity of a cluster's processes: one certificate authority per
// cluster, short-lived certificates that carry a role and a name, and the rules by which
// one side believes another.
//
// The authority's key lies in the cluster's state directory and in the head, nowhere
// else. A process is one of three roles: the head, an agent (named by its node), a client
// (a link or a command). A certificate says so in a URI, launcher://CLUSTER/ROLE/NAME,
// lives for a day and is renewed at half its life; connections that are open stay open.
//
// Host names and addresses play no part: nodes have many, and they change. What is checked
// is the authority, the cluster and the role (and by callers the name).
package secure

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"launcher/internal/errs"
)

// Role is what a process may do.
type Role uint8

const (
	RoleNone   Role = iota // has no certificate: may only join
	RoleHead               // decides; there is one
	RoleAgent              // runs work; its name is the node's
	RoleClient             // the command, a driver, a link
)

var roleNames = [...]string{"none", "head", "agent", "client"}

func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return fmt.Sprintf("role-%d", uint8(r))
}

// ParseRole is the inverse of String for the roles that certificates carry.
func ParseRole(s string) (Role, bool) {
	for i, n := range roleNames[1:] {
		if n == s {
			return Role(i + 1), true
		}
	}
	return RoleNone, false
}

const (
	// DefaultLife is how long a certificate is valid.
	DefaultLife = 24 * time.Hour
	// Backdate is how far before its issue a certificate is valid, for clocks that are behind.
	Backdate = time.Hour
	caLife   = 20 * 365 * 24 * time.Hour
)

// Subject is who a certificate is about.
type Subject struct {
	Cluster string
	Role    Role
	Name    string
}

func (s Subject) String() string { return s.Role.String() + " " + s.Name + " of cluster " + s.Cluster }

// URI is the subject's form in a certificate.
func (s Subject) URI() *url.URL {
	return &url.URL{Scheme: "launcher", Host: s.Cluster, Path: "/" + s.Role.String() + "/" + s.Name}
}

// parseSubject reads the URI of a certificate.
func parseSubject(u *url.URL) (Subject, error) {
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Scheme != "launcher" || u.Host == "" || len(parts) != 2 || parts[1] == "" {
		return Subject{}, errs.New(errs.Permission, "the certificate names %q, which is not a process of launcher", u)
	}
	r, ok := ParseRole(parts[0])
	if !ok {
		return Subject{}, errs.New(errs.Permission, "the certificate names the role %q, which this version does not know", parts[0])
	}
	return Subject{Cluster: u.Host, Role: r, Name: parts[1]}, nil
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]|\.[A-Za-z0-9_-]){0,127}$`)

func checkName(what, s string) error {
	if nameRE.MatchString(s) {
		return nil
	}
	return errs.New(errs.Invalid, "%s %q cannot be put into a certificate", what, s).
		Hint("allowed are letters, digits, '-', '_' and single dots inside, up to 128 characters")
}

// CleanName makes a name for a certificate out of one that comes from outside, such as a
// host's: what is not allowed becomes '-'.
func CleanName(s string) string {
	b := []byte(s)
	for i, c := range b {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			b[i] = '-'
		}
	}
	if len(b) == 0 || b[0] == '-' {
		b = append([]byte("x"), b...)
	}
	return string(b[:min(len(b), 128)])
}
