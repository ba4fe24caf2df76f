// gateway/fronts/mqtt: commands of an untrusted broker: unchanged, or with their content signed by an allowed key. No
// unsigned command is accepted; an accepted command is a duplicate the second time.
import { concatBytes } from '../../crypto/bytes.ts'
import { type CommandKey, publicKeyOf, signCommand } from '../../crypto/command-keys.ts'
import { loadSodium } from '../../crypto/identity.ts'
import { type CommandMessage, createCommands, REFUSALS } from '../../gateway/fronts/mqtt/commands.ts'
import { ACTIONS, topicsOf } from '../../mqtt/topics.ts'
import { fixedKeys } from '../keys.ts'
import { demand, type Target } from '../target.ts'

const NOW_MS = Date.UTC(2027, 0, 15, 8)
const topics = topicsOf('telco')
let key: CommandKey
const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64')
const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value)

const common = (commandId: string) => ({
  ...{ commandId, vmId: 'web-1', reason: 'the user moved', expectedEpoch: 7 },
  notAfter: new Date(NOW_MS + 30_000).toISOString(),
})
const VALID: Record<(typeof ACTIONS)[number], object> = {
  start: { ...common('start-0001'), toSite: 'bergen', method: 'live', constraints: { maxDowntimeMs: 300 } },
  prestage: { ...common('stage-0001'), toSite: 'bergen' },
  cancel: { ...common('cancel-001'), handoffId: '00112233445566778899aabbccddeeff' },
  pin: { ...common('pin-000001'), pinned: true },
}
const HOW = ['bare', 'signed', 'retained'] as const

/** Signed over its content, if it is an object. */
function signed(action: (typeof ACTIONS)[number], bytes: Uint8Array): Uint8Array {
  try {
    const value = JSON.parse(Buffer.from(bytes).toString('utf8'))
    if (!isObject(value)) return bytes
    const { sig: _, ...payload } = value
    return Buffer.from(JSON.stringify(signCommand(key, topics, action, payload)))
  } catch {
    // Not JSON, or not a JSON that can be signed.
    return bytes
  }
}

export const commands: Target = {
  name: 'commands',
  what: 'gateway/fronts/mqtt/commands.ts, canonical.ts, schemas.ts: commands from a broker, bare and signed',
  codes: REFUSALS,
  testRuns: 2500,
  bytesMax: 8192,
  jsonAt: 2,
  words: ['"sig"', '"alg":"Ed25519"', '__proto__', '\\ud800', '1e400', 'godwit/v1/telco/', '"replyTo"'],
  async setup() {
    await loadSodium()
    const { signSecret, signPublic } = fixedKeys(9)
    key = { kind: 'godwit-command-key', name: 'ops', publicKey: base64(signPublic), secretKey: base64(signSecret.subarray(0, 32)) }
  },
  seeds: () =>
    ACTIONS.flatMap((action, at) =>
      HOW.map((_, how) =>
        concatBytes(
          Uint8Array.of(at, how),
          Buffer.from(JSON.stringify(how === 1 ? VALID[action] : signCommand(key, topics, action, VALID[action]))),
        ),
      ),
    ),
  hostile: () => ({
    'a deep one': concatBytes(Uint8Array.of(0, 1), Buffer.from(`{"commandId":${'['.repeat(60_000)}${']'.repeat(60_000)}}`)),
    'many fields': concatBytes(
      Uint8Array.of(0, 1),
      Buffer.from(JSON.stringify(Object.fromEntries(Array.from({ length: 2000 }, (_, i) => [`f${i}`, i])))),
    ),
  }),
  run(input) {
    const action = ACTIONS[(input[0] ?? 0) % ACTIONS.length]!
    const how = HOW[(input[1] ?? 0) % HOW.length]!
    const came = input.subarray(2)
    const payload = how === 'signed' ? signed(action, came) : came
    const gate = createCommands({ topics, keys: [{ name: 'ops', key: publicKeyOf(key.publicKey), actions: ACTIONS }], rememberedMax: 4 })
    const message: CommandMessage = { action, payload, retained: how === 'retained', responseTopic: undefined }
    const verdict = gate.take(message, NOW_MS)
    if (verdict.verdict === 'rejected') throw verdict.error
    demand(verdict.verdict === 'accepted', 'a first command is a duplicate')
    demand(how !== 'retained', 'a retained command was accepted')
    verdict.settle(Promise.resolve({} as never))
    demand(gate.take(message, NOW_MS + 1).verdict === 'duplicate', 'a command is executed twice')
    const nobody = createCommands({ topics, keys: [], rememberedMax: 4 })
    demand(nobody.take(message, NOW_MS).verdict === 'rejected', 'a command without a known key is accepted')
    // One changed byte of the signature must make it invalid.
    const forged = Buffer.from(payload)
    const at = forged.lastIndexOf('"value"')
    if (at >= 0 && at + 12 < forged.length) {
      forged[at + 10] = forged[at + 10] === 0x41 ? 0x42 : 0x41
      const other = createCommands({ topics, keys: [{ name: 'ops', key: publicKeyOf(key.publicKey), actions: ACTIONS }] })
      demand(other.take({ ...message, payload: forged }, NOW_MS).verdict === 'rejected', 'a signature that was altered passes')
    }
  },
}
