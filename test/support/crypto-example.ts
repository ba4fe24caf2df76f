// The worked example of docs/reference/protocol.md: two sites, one root, one migration, all randomness fixed.
// test/vectors/worked-example.json holds what it must give; `node test/vectors/generate-worked-example.ts` writes that
// file anew (only when the protocol's version has changed).
import { issueCertificate, type Root } from '../../crypto/certificate.ts'
import { finish, type HandshakeState, readMessage, startHandshake, writeMessage } from '../../crypto/channel/handshake.ts'
import { derivePageHashKey, deriveStreamKey } from '../../crypto/channel/keys.ts'
import { manifestHash } from '../../crypto/channel/manifest.ts'
import { createPageHasher } from '../../crypto/channel/page-hash.ts'
import { encodePrologue } from '../../crypto/channel/prologue.ts'
import { createSealer } from '../../crypto/channel/record.ts'
import { hashBytes } from '../../crypto/hash.ts'
import { fingerprint, type SiteKeys } from '../../crypto/identity.ts'
import { type LinkTranscript, signLink } from '../../crypto/link-auth.ts'
import { sodium } from '../../crypto/sodium.ts'

type Example = Record<string, string>

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const fill = (value: number, length = 32) => new Uint8Array(length).fill(value)
const utf8 = (text: string) => new TextEncoder().encode(text)

function keysOf(signSeed: number, boxSecret: number): SiteKeys {
  const pair = sodium().crypto_sign_seed_keypair(fill(signSeed))
  const secret = fill(boxSecret)
  return { signPublic: pair.publicKey, signSecret: pair.privateKey, boxPublic: sodium().crypto_scalarmult_base(secret), boxSecret: secret }
}

/** Random numbers of the example: the first call gives bytes of `first`, the next of `first + 1`, and so on. */
function counted(first: number): (count: number) => Uint8Array {
  let next = first
  return count => fill(next++, count)
}

/** Every value of the example, by name; bytes as hex. */
export function workedExample(): Example {
  const out: Example = {}
  const rootPair = sodium().crypto_sign_seed_keypair(fill(0x01))
  const root: Root = { signPublic: rootPair.publicKey, signSecret: rootPair.privateKey }
  const [source, target, gateway] = [keysOf(0x02, 0x03), keysOf(0x04, 0x05), keysOf(0x06, 0x07)]
  const validity = { notBefore: 1_800_000_000, notAfter: 1_800_604_800 }
  const certificate = (role: 'site' | 'gateway', id: string, keys: SiteKeys, serial: string) =>
    issueCertificate(root, { role, id, ...keys, ...validity, serial: serial.repeat(16) })
  const sourceCertificate = certificate('site', 'oslo', source, 'a1')
  const targetCertificate = certificate('site', 'bergen', target, 'a2')
  const gatewayCertificate = certificate('gateway', 'hub', gateway, 'a3')
  out['root.signPublic'] = hex(root.signPublic)
  out['root.fingerprint'] = fingerprint(root.signPublic)
  out['source.signPublic'] = hex(source.signPublic)
  out['source.boxPublic'] = hex(source.boxPublic)
  out['target.boxPublic'] = hex(target.boxPublic)
  out['source.certificate'] = hex(sourceCertificate)
  out['target.certificate'] = hex(targetCertificate)

  const transcript: LinkTranscript = {
    version: 1,
    nodeNonce: fill(0x10),
    gatewayNonce: fill(0x11),
    nodeCertificate: sourceCertificate,
    gatewayCertificate,
    binding: fill(0x12),
  }
  out['link.nodeSignature'] = hex(signLink('node', { keys: source, certificate: sourceCertificate }, transcript))
  out['link.gatewaySignature'] = hex(signLink('gateway', { keys: gateway, certificate: gatewayCertificate }, transcript))

  const prologue = encodePrologue({
    version: 1,
    migrationId: '000102030405060708090a0b0c0d0e0f',
    vm: 'web-1',
    epoch: 7,
    attempt: 1,
    sourceCertificate,
    targetCertificate,
    planHash: hashBytes(utf8('{"example":true}')),
    compression: 'zstd',
  })
  out['prologue'] = hex(prologue)
  for (const hybrid of [false, true]) handshakeExample(out, hybrid, source, target, prologue)
  recordExample(out)
  return out
}

function handshakeExample(out: Example, hybrid: boolean, source: SiteKeys, target: SiteKeys, prologue: Uint8Array): void {
  const name = hybrid ? 'hybrid' : 'classical'
  let initiator: HandshakeState = startHandshake({
    role: 'initiator',
    hybrid,
    local: source,
    remotePublic: target.boxPublic,
    prologue,
    random: counted(0x20),
  })
  let responder: HandshakeState = startHandshake({
    role: 'responder',
    hybrid,
    local: target,
    remotePublic: source.boxPublic,
    prologue,
    random: counted(0x30),
  })
  const first = writeMessage(initiator, utf8('hello'))
  responder = readMessage(responder, first.message).state
  const second = writeMessage(responder, utf8('welcome'))
  initiator = readMessage(first.state, second.message).state
  const [ours, theirs] = [finish(initiator), finish(second.state)]
  if (hex(ours.rootKey) !== hex(theirs.rootKey)) throw new Error('the two ends of the example differ')
  out[`${name}.message1`] = hex(first.message)
  out[`${name}.message2`] = hex(second.message)
  out[`${name}.handshakeHash`] = hex(ours.handshakeHash)
  out[`${name}.rootKey`] = hex(ours.rootKey)
}

function recordExample(out: Example): void {
  const rootKey = new Uint8Array(Buffer.from(out['hybrid.rootKey']!, 'hex'))
  const name = { direction: 'source-to-target', index: 2 } as const
  const key = deriveStreamKey(rootKey, { ...name, attempt: 1 })
  const sealer = createSealer({
    key,
    context: { ...name, migrationId: '000102030405060708090a0b0c0d0e0f', epoch: 7 },
    header: fill(0x40, 24),
  })
  out['stream.key'] = hex(key)
  out['stream.header'] = hex(sealer.header)
  out['record.0'] = hex(sealer.seal(utf8('page data')))
  out['record.1.final'] = hex(sealer.seal(new Uint8Array(0), { final: true }))
  out['stream.digest'] = hex(sealer.digest())
  out['manifest.hash'] = hex(manifestHash({ streams: [{ index: 2, records: sealer.records, digest: sealer.digest() }] }))
  const pageHash = new Uint8Array(16)
  createPageHasher(derivePageHashKey(rootKey)).hash(new Uint8Array(4096), pageHash)
  out['page.hashOfZeros'] = hex(pageHash)
}
