package main

import "syscall"

// tied starts a process in a session of its own that is told to end when the thread that
// starts it ends, and so with this process however that ends.
func tied() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
}
