//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// hide has a terminal not show what is typed, until show is called.
func hide(f *os.File) (show func(), err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var was *unix.Termios
	var bad error
	err = raw.Control(func(fd uintptr) {
		if was, bad = unix.IoctlGetTermios(int(fd), getTermios); bad == nil {
			quiet := *was
			quiet.Lflag &^= unix.ECHO
			quiet.Lflag |= unix.ICANON | unix.ISIG
			bad = unix.IoctlSetTermios(int(fd), setTermios, &quiet)
		}
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, err
	}
	return func() {
		_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetTermios(int(fd), setTermios, was) })
	}, nil
}
