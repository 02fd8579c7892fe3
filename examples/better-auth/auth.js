// What makes Better Auth a partner of taskctl: the plugins jwt, bearer and deviceAuthorization.
// Everything else here turns the settings of README.md into Better Auth's options.
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { bearer, deviceAuthorization, jwt } from "better-auth/plugins";

const seconds = (text) => (text ? Number(text) : undefined);

/** Better Auth at `url`; users, sessions and keys live in memory and are gone when the process ends. */
export function createAuth(url, env) {
  return betterAuth({
    baseURL: url,
    secret: env.BETTER_AUTH_SECRET,
    database: memoryAdapter({ user: [], session: [], account: [], verification: [], jwks: [], deviceCode: [] }),
    emailAndPassword: { enabled: true },
    emailVerification: {
      sendOnSignUp: true,
      sendVerificationEmail: async ({ user, url }) => console.log(`Mail to ${user.email}: ${url}`),
    },
    // "uuid" and "serial" are Better Auth's words; its default is 32 letters and digits.
    advanced: { database: { generateId: env.AUTH_IDS || undefined } },
    session: { cookieCache: { enabled: Boolean(env.AUTH_COOKIE_CACHE), strategy: "jwt" } },
    plugins: [
      jwt({
        sessionCookieCache: env.AUTH_COOKIE_CACHE === "keys",
        jwks: {
          keyPairConfig: { alg: env.JWT_ALGORITHM || "EdDSA" },
          rotationInterval: seconds(env.JWKS_ROTATION),
          gracePeriod: seconds(env.JWKS_GRACE),
          jwksPath: env.JWKS_PATH || "/jwks",
        },
        jwt: {
          expirationTime: env.JWT_LIFETIME || "15m",
          // Without a scope taskctl lets a token do everything. definePayload replaces all of the user's claims.
          definePayload: env.JWT_SCOPE ? () => ({ scope: env.JWT_SCOPE }) : undefined,
        },
      }),
      bearer(),
      deviceAuthorization({
        verificationUri: "/device",
        validateClient: (client) => client === "taskctl",
        interval: env.DEVICE_INTERVAL || "5s",
        expiresIn: env.DEVICE_LIFETIME || "30m",
      }),
    ],
  });
}
