package wire

// Auth is one registry's credentials, as X-Registry-Auth carries them and POST /auth takes them.
type Auth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	Auth          string `json:"auth,omitempty"`
	ServerAddress string `json:"serveraddress,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// LoginResult is the answer of POST /auth.
type LoginResult struct {
	IdentityToken string
	Status        string
}
