package main

import (
	"fmt"
	"syscall"
	"unsafe"
)

// defaultAction gives a signal back its default disposition, behind the back of Go's runtime, which has handlers for
// what means a crash.
func defaultAction(s syscall.Signal) {
	var action struct {
		handler, flags, restorer, mask uintptr
	}
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

func terminal([]string) error {
	for fd, name := range []string{"stdin", "stdout", "stderr"} {
		var size struct{ rows, columns, x, y uint16 }
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
		if errno != 0 {
			fmt.Println(name, "no")
		} else {
			fmt.Println(name, size.rows, size.columns)
		}
	}
	return nil
}
