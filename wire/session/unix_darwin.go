package session

import (
	"net"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
)

func peerCred(c *net.UnixConn) (uid, pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, errs.Wrap(errs.Internal, err, "credentials of a socket")
	}
	var cred *unix.Xucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	})
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return 0, 0, errs.Wrap(errs.Permission, err, "the kernel does not say who is at the other end")
	}
	return int(cred.Uid), 0, nil
}
