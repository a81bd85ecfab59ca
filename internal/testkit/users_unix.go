//go:build unix

package testkit

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"testing"
)

// User is a plain user of this machine.
type User struct {
	Name     string
	UID, GID int
	Home     string
}

// PlainUser gives the plain user launcher-tN, which root makes when it is not there. It
// skips the test where we are not root.
func PlainUser(t testing.TB, n int) *User {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to run as another user")
	}
	name := "launcher-t" + strconv.Itoa(n)
	u, err := user.Lookup(name)
	if err != nil {
		if out, err := exec.Command("useradd", "--create-home", "--shell", "/bin/bash", name).CombinedOutput(); err != nil {
			t.Skipf("cannot make user %s: %v %s", name, err, out)
		}
		if u, err = user.Lookup(name); err != nil {
			t.Fatal(err)
		}
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &User{Name: name, UID: uid, GID: gid, Home: u.HomeDir}
}

// NewAs makes a Home of another user.
func NewAs(t testing.TB, u *User) *Home {
	t.Helper()
	return newHome(t, u)
}
