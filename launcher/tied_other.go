//go:build !linux

package main

import "syscall"

// tied: clusters run on Linux only, so nothing is started like this elsewhere.
func tied() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
