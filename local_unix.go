//go:build unix

package launcher

import "syscall"

// apart keeps Ctrl-C from the cluster: the program ends first, then the cluster.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
