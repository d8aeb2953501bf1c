package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// secretVariable gives NAME=VALUE for CREDENTIAL:NAME.
func secretVariable(option string) string {
	credential, name, _ := strings.Cut(option, ":")
	return name + "=" + readSecret(credential)
}

// writeSecret makes the file for CREDENTIAL:UID:GID:MODE:PATH.
func writeSecret(option string) {
	fields := strings.SplitN(option, ":", 5)
	if len(fields) != 5 {
		fail(ownError, "bad secret "+strconv.Quote(option))
	}
	uid, err1 := strconv.ParseUint(fields[1], 10, 32)
	gid, err2 := strconv.ParseUint(fields[2], 10, 32)
	mode, err3 := strconv.ParseUint(fields[3], 8, 12)
	err := errors.Join(err1, err2, err3)
	if err == nil {
		err = os.WriteFile(fields[4], []byte(readSecret(fields[0])), 0o600)
	}
	if err == nil {
		err = os.Chmod(fields[4], os.FileMode(mode)) // while it is ours: then that would take a capability
	}
	if err == nil && (uid != 0 || gid != 0) {
		err = os.Lchown(fields[4], int(uid), int(gid))
	}
	if err != nil {
		fail(ownError, "secret "+fields[4]+": "+err.Error())
	}
}

// secrets are those that were read before this process could read them no more.
var secrets = map[string]string{}

// keepSecrets reads the credentials that arguments name, which are the host's root's.
func keepSecrets(args []string) {
	for _, arg := range args {
		option, value, _ := strings.Cut(arg, "=")
		if option == "--secret-env" || option == "--secret-file" {
			name, _, _ := strings.Cut(value, ":")
			secrets[name] = readSecret(name)
		}
		if option == "--" {
			return
		}
	}
}

func readSecret(credential string) string {
	if secret, kept := secrets[credential]; kept {
		return secret
	}
	data, err := os.ReadFile(filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), credential))
	if err != nil {
		fail(ownError, "secret "+strconv.Quote(credential)+": "+err.Error())
	}
	return string(data)
}
