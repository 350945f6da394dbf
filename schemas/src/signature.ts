/**
 * An agent's word for what it announces: Ed25519 (RFC 8032) over who captured what, when, and the digest of its bytes. It
 * travels in a header and on the object, so that whoever announces again what a broker lost can repeat it, but not make it.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto'
import { Fault } from '@frameloop/kit/fault'
import type { EpochMs } from '@frameloop/kit/units'

/** Not one of those that end with the record's way through the chain: a record sent again keeps it. */
export const signatureHeader = 'agent-signature'

export interface Claim {
  readonly siteId: string
  readonly agentId: string
  readonly cameraId: string
  readonly epoch: string
  readonly seq: number
  readonly capturedAt: EpochMs
  /** Of the bytes, hex. */
  readonly sha256: string
}

function bytesOf({ siteId, agentId, cameraId, epoch, seq, capturedAt, sha256 }: Claim): Buffer {
  return Buffer.from(JSON.stringify(['frameloop media 1', siteId, agentId, cameraId, epoch, seq, capturedAt, sha256]))
}

/** Base64. */
export function signClaim(claim: Claim, key: KeyObject): string {
  return sign(null, bytesOf(claim), key).toString('base64')
}

/** A record with its agent's word on it; as it is where there is none. */
export function withSignature<Message extends { readonly headers: Readonly<Record<string, string>> }>(record: Message, signature: string | undefined): Message {
  return signature === undefined ? record : { ...record, headers: { ...record.headers, [signatureHeader]: signature } }
}

export function isSigned(claim: Claim, signature: string | undefined, key: KeyObject): boolean {
  return signature !== undefined && verify(null, bytesOf(claim), key, Buffer.from(signature, 'base64'))
}

function keyOf(pem: string, make: (pem: string) => KeyObject, what: string): KeyObject {
  let key: KeyObject
  try {
    key = make(pem)
  } catch (thrown) {
    throw new Fault('CONFIG_INVALID', `The ${what} is no PEM`, {}, thrown)
  }
  if (key.asymmetricKeyType !== 'ed25519') throw new Fault('CONFIG_INVALID', `The ${what} is of type ${key.asymmetricKeyType}; it must be Ed25519`)
  return key
}

/** Throw `CONFIG_INVALID`. */
export const privateKeyOf = (pem: string): KeyObject => keyOf(pem, createPrivateKey, 'signing key')
export function publicKeyOf(pem: string): KeyObject {
  // the public half could be made of it, and whoever hands it over keeps it where it does not belong
  if (pem.includes('PRIVATE KEY')) throw new Fault('CONFIG_INVALID', 'This is the private key, which stays beside the agent: `frameloop-agent make-key` prints the public one')
  return keyOf(pem, createPublicKey, 'public key')
}

/** PEM of both halves. */
export function makeKeys(): { readonly privatePem: string; readonly publicPem: string } {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  return { privatePem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(), publicPem: publicKey.export({ type: 'spki', format: 'pem' }).toString() }
}
