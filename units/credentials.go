package units

import (
	"encoding/base64"
	"fmt"
)

// Credential is a secret that the service finds as a file of the name (say).
type Credential struct {
	Name string
	Data []byte
}

// credentialName takes the name before the first colon.
var credentialName = syntax{separators: ":", everyField: true}

func cutCredential(s string) (name, data string, err error) {
	name, data, separator, err := credentialName.next(s)
	if err == nil && separator == 0 {
		err = fmt.Errorf("%.40q is not NAME:DATA", s)
	}
	return name, data, err
}

// parseCredential reads NAME:DATA, with the escapes of C in the data.
func parseCredential(s string) (Credential, error) {
	name, data, err := cutCredential(s)
	if err != nil {
		return Credential{}, err
	}
	data, err = unescape(data, true)
	return Credential{name, []byte(data)}, err
}

func formatCredential(c Credential) string {
	return escapeSpecifiers(c.Name) + ":" + cEscape(string(c.Data)) // without specifiers
}

// parseEncryptedCredential reads NAME:DATA, the data in base64.
func parseEncryptedCredential(s string) (Credential, error) {
	name, data, err := cutCredential(s)
	if err != nil {
		return Credential{}, err
	}
	decoded, err := parseBase64(data)
	return Credential{name, decoded}, err
}

func formatEncryptedCredential(c Credential) string {
	return escapeSpecifiers(c.Name) + ":" + base64.StdEncoding.EncodeToString(c.Data)
}

// parseLoadedCredential reads NAME[:PATH]; without a path, the manager's own credential of the name.
func parseLoadedCredential(s string) (Pair, error) {
	name, path, _, err := credentialName.next(s)
	if path == "" {
		path = s
	}
	return Pair{name, path}, err
}

// parseImportedCredential reads PATTERN[:PREFIX].
func parseImportedCredential(s string) (Pair, error) {
	pattern, prefix, separator, err := credentialName.next(s)
	if separator == 0 {
		return Pair{s, ""}, err
	}
	return Pair{pattern, prefix}, err
}

// importedCredentialProperty sends patterns without a prefix as every version takes them.
func importedCredentialProperty(directive string, v any) []Property {
	plain, renamed := []string{}, []Pair{}
	for _, p := range v.([]Pair) {
		if p.Second == "" {
			plain = append(plain, p.First)
		} else {
			renamed = append(renamed, p)
		}
	}
	if len(renamed) > 0 {
		return []Property{{directive + "Ex", renamed}}
	}
	return []Property{{directive, plain}}
}
