// godwit mqtt keygen | tail | command: for integrators at work (docs/CONTROL.md). They speak to the broker, not to the gateway, as an integrator's
// own programs do: what works here works there.
import { randomBytes, randomUUID } from 'node:crypto'
import { join } from 'node:path'
import type { Incoming, MqttLink } from '../../gateway/control/mqtt/client.ts'
import type { Action, Topics } from '../../gateway/control/mqtt/topics.ts'
import { EXIT, fromBody, GodwitError } from '../../wire/errors.ts'
import { mqttTarget } from '../client.ts'
import { command, type OptionSpecs, shared } from '../command.ts'
import type { MqttFlags } from '../config.ts'
import type { Io } from '../io.ts'
import { clean, json, listing } from '../output.ts'
import { defaultPaths } from '../paths.ts'

const broker = {
  broker: { kind: 'text', value: 'URL', help: 'the MQTT broker (GODWIT_MQTT_URL; default mqtt://127.0.0.1:1883)' },
  tenant: { kind: 'text', value: 'NAME', help: 'tenant of the topics (GODWIT_MQTT_TENANT; default main)' },
  user: { kind: 'text', value: 'NAME', help: 'user name at the broker (GODWIT_MQTT_USER)' },
  'password-file': { kind: 'path', value: 'FILE', help: 'file with the password (GODWIT_MQTT_PASSWORD_FILE)' },
  ca: { kind: 'path', value: 'FILE', help: "certificate authority of the broker, where it is not one of the system's" },
  certificate: { kind: 'path', value: 'FILE', help: 'client certificate to show to the broker' },
  'certificate-key': { kind: 'path', value: 'FILE', help: 'the key of the client certificate' },
} as const satisfies OptionSpecs

const CONNECT_MS = 10_000
const PLACEMENT_MS = 5_000
const TTL_MS = 30_000

type Connected = { topics: Topics; link: MqttLink; user: string | undefined }

/** Connects and subscribes, or throws what stands in the way. */
async function connect(
  io: Io,
  flags: MqttFlags,
  o: { subscriptions: (topics: Topics, user: string | undefined) => string[]; onMessage: (message: Incoming) => void; onDown?: () => void },
): Promise<Connected> {
  const [{ connectMqtt }, { topicsOf }, { silentLog }, { target, tenant, user }] = await Promise.all([
    import('../../gateway/control/mqtt/client.ts'),
    import('../../gateway/control/mqtt/topics.ts'),
    import('../../wire/log.ts'),
    mqttTarget(io, flags),
  ])
  const topics = topicsOf(tenant)
  const link = connectMqtt({
    target,
    clientId: `godwit-cli-${randomBytes(6).toString('hex')}`,
    subscriptions: o.subscriptions(topics, user).map(topic => ({ topic, qos: 1 })),
    onMessage: o.onMessage,
    onDown: o.onDown ?? (() => {}),
    firstOrNever: true,
    log: silentLog,
  })
  try {
    await link.whenUp({ timeoutMs: CONNECT_MS })
  } catch (error) {
    await link.close()
    throw error
  }
  return { topics, link, user }
}

const keygen = command({
  name: 'mqtt keygen',
  summary: 'make a key that signs commands over MQTT',
  details:
    'Writes the key (0600, secret) and prints what to add to mqtt.commandKeys of gateway.yaml. The key is that of the commander; the gateway knows its public half only.',
  options: {
    name: { kind: 'text', value: 'NAME', help: 'name of the key: 1 to 64 of a-z, 0-9 and -', required: true },
    out: { kind: 'path', value: 'FILE', help: 'file to write (default: command-NAME.key in the configuration folder)' },
    force: { kind: 'flag', help: 'overwrite a key that exists' },
    json: shared.json,
  },
  examples: ['godwit mqtt keygen --name noc-1'],
  run: async ({ options, io }) => {
    const [{ encodeCommandKey, generateCommandKey }, { writeFileSafely }, { NAME_PATTERN }] = await Promise.all([
      import('../../gateway/control/mqtt/command-keys.ts'),
      import('../../ops/files.ts'),
      import('../../wire/types.ts'),
    ])
    const { name, force } = options
    if (!NAME_PATTERN.test(name)) throw new GodwitError('USAGE', `--name '${name}': expected 1 to 64 of a-z, 0-9 and -`)
    const path = options.out ?? join(defaultPaths(io).configDir, `command-${name}.key`)
    const key = generateCommandKey(name)
    await writeFileSafely(path, encodeCommandKey(key), { overwrite: force })
    const { publicKey } = key
    if (options.json) io.out(json({ name, publicKey, key: path }))
    else {
      const line = `${name}: { publicKey: ${publicKey}, actions: [start, prestage, cancel, pin] }`
      io.out(listing(Object.entries({ name, publicKey, key: path, 'gateway.yaml': `mqtt: { commandKeys: { ${line} } }` })))
    }
    return EXIT.ok
  },
})

const tail = command({
  name: 'mqtt tail',
  summary: 'show what goes over MQTT',
  details:
    'One line of JSON for each message: {"topic", "retained", "payload"}. Runs until Ctrl-C and comes back by itself when the broker was away. ' +
    "What is shown is what the broker lets this user read: with 'observe' all but commands, replies and measurements.",
  options: {
    topic: { kind: 'text', value: 'FILTER', help: "filter below the tenant's root, such as handoff/# or site/+/state (default #)" },
    count: { kind: 'integer', value: 'N', min: 1, max: 1_000_000, help: 'end after so many messages' },
    ...broker,
  },
  examples: ['godwit mqtt tail', 'godwit mqtt tail --topic handoff/#', 'godwit mqtt tail --user noc --password-file noc.password'],
  run: async ({ options, io }) => {
    let left = options.count ?? Number.POSITIVE_INFINITY
    const over = Promise.withResolvers<void>()
    const stop = io.onInterrupt(() => over.resolve())
    const { link } = await connect(io, options, {
      subscriptions: topics => [`${topics.root}/${options.topic ?? '#'}`],
      onMessage: message => {
        if (left <= 0) return
        left -= 1
        io.out(lineOf(message))
        if (left <= 0) over.resolve()
      },
      onDown: () => io.err('the broker is away; waiting for it\n'),
    })
    await over.promise
    stop()
    await link.close()
    return EXIT.ok
  },
})

function lineOf({ topic, retained, payload }: Incoming): string {
  const text = new TextDecoder().decode(payload)
  let shown: unknown
  try {
    shown = JSON.parse(text)
  } catch {
    shown = clean(text)
  }
  return `${JSON.stringify({ topic, retained, payload: shown })}\n`
}

const commandOptions = {
  key: { kind: 'path', value: 'FILE', help: 'the key that signs (godwit mqtt keygen)', required: true },
  to: { kind: 'text', value: 'SITE', help: 'start, prestage: where the VM shall go' },
  method: { kind: 'choice', choices: ['live', 'cold'], help: 'start: how (default live)' },
  downtime: { kind: 'duration', value: 'TIME', help: 'start: the longest pause that is acceptable' },
  'max-bytes': { kind: 'size', value: 'SIZE', help: 'start: cancelled when more has gone over the wire before the switchover' },
  handoff: { kind: 'text', value: 'ID', help: 'cancel: this one only (default: the one under way)' },
  off: { kind: 'flag', help: 'pin: let the VM go again' },
  ue: { kind: 'text', value: 'KEY', help: 'the user for whom this is' },
  reason: { kind: 'text', value: 'TEXT', help: "for the gateway's log (default: godwit mqtt command)" },
  epoch: { kind: 'integer', value: 'N', min: 0, max: Number.MAX_SAFE_INTEGER, help: "the VM's epoch (default: as its placement says)" },
  'reply-to': { kind: 'text', value: 'NAME', help: "last level of the reply topic (default: the user's name, or godwit-cli)" },
  timeout: { kind: 'duration', value: 'TIME', help: 'how long to wait for the reply (default 20s)' },
  json: shared.json,
  ...broker,
} as const satisfies OptionSpecs

const give = command({
  name: 'mqtt command',
  summary: 'sign a command, send it over MQTT, and wait for the reply',
  details:
    'start moves a VM, cancel ends a move, pin keeps a VM where it is (--off lets it go), prestage asks the target whether it could take it, and holds room there for two minutes. The command is fenced by the epoch of ' +
    "the VM's placement, which is read from the broker first, and is good for 30 s. A refusal ends with the exit code of its problem's code.",
  positionals: [
    { name: 'ACTION', help: 'start, cancel, pin or prestage' },
    { name: 'VM', help: 'name of the VM' },
  ],
  options: commandOptions,
  examples: [
    'godwit mqtt command start web-1 --to hamburg-1 --key command-noc-1.key',
    'godwit mqtt command pin web-1 --off --key command-noc-1.key',
  ],
  run: async ({ options, args, io }) => {
    const [{ decodeCommandKey, signCommand }, { readSecret }, { ACTIONS }] = await Promise.all([
      import('../../gateway/control/mqtt/command-keys.ts'),
      import('../../ops/files.ts'),
      import('../../gateway/control/mqtt/topics.ts'),
    ])
    const action = args[0] as Action
    const vm = args[1] ?? ''
    if (!ACTIONS.includes(action)) throw new GodwitError('USAGE', `'${action}': expected one of ${ACTIONS.join(', ')}`)
    const key = decodeCommandKey(await readSecret(options.key), options.key)
    const fields = fieldsOf(action, options)
    const inbox = createInbox()
    const replyName = (user: string | undefined) => options['reply-to'] ?? user ?? 'godwit-cli'
    const { topics, link, user } = await connect(io, options, {
      subscriptions: (topics, user) => [topics.build('reply', { clientId: replyName(user) }), topics.build('placement', { vmId: vm })],
      onMessage: inbox.put,
    })
    try {
      const expectedEpoch = options.epoch ?? (await epochOf(inbox, topics, vm))
      const payload = {
        commandId: randomUUID(),
        vmId: vm,
        ...fields,
        expectedEpoch,
        notAfter: new Date(Date.now() + TTL_MS).toISOString(),
        replyTo: topics.build('reply', { clientId: replyName(user) }),
      }
      const signed = signCommand(key, topics, action, payload)
      await link.publish({
        topic: topics.build(action),
        payload: JSON.stringify(signed),
        qos: 1,
        retained: false,
        expirySeconds: TTL_MS / 1000,
      })
      const isReply = (topic: string, reply: Answer) => topic === payload.replyTo && reply.commandId === payload.commandId
      const reply = await inbox.wait(isReply, options.timeout ?? 20_000, "the gateway's reply")
      return show(io, reply, options.json)
    } finally {
      await link.close()
    }
  },
})

type Answer = {
  commandId?: string
  status?: string
  handoffId?: string
  epoch?: number
  problem?: { code: string; detail: string; hint?: string }
}

function fieldsOf(
  action: Action,
  o: { to?: string | undefined; method?: string | undefined; downtime?: number | undefined; 'max-bytes'?: number | undefined } & {
    handoff?: string | undefined
    off: boolean
    ue?: string | undefined
    reason?: string | undefined
  },
): object {
  const moves = action === 'start' || action === 'prestage'
  if (moves && o.to === undefined) throw new GodwitError('USAGE', `--to is needed: where the VM shall go`)
  const constraints = {
    ...(o.downtime === undefined ? {} : { maxDowntimeMs: Math.round(o.downtime) }),
    ...(o['max-bytes'] === undefined ? {} : { maxBytes: o['max-bytes'] }),
  }
  return {
    reason: o.reason ?? 'godwit mqtt command',
    ...(o.ue === undefined ? {} : { ueKey: o.ue }),
    ...(moves ? { toSite: o.to } : {}),
    ...(action === 'start' && o.method !== undefined ? { method: o.method } : {}),
    ...(moves && Object.keys(constraints).length > 0 ? { constraints } : {}),
    ...(action === 'cancel' && o.handoff !== undefined ? { handoffId: o.handoff } : {}),
    ...(action === 'pin' ? { pinned: !o.off } : {}),
  }
}

async function epochOf(inbox: Inbox, topics: Topics, vm: string): Promise<number> {
  const topic = topics.build('placement', { vmId: vm })
  try {
    return (await inbox.wait(where => where === topic, PLACEMENT_MS, `the placement of VM ${vm}`)).epoch ?? 0
  } catch (cause) {
    throw new GodwitError('VM_UNKNOWN', `no placement of a VM '${vm}' stands at the broker`, {
      cause,
      hint: 'is the name right, and may this user read vm/+/placement? --epoch goes without',
    })
  }
}

type Inbox = {
  put(message: Incoming): void
  wait(fits: (topic: string, answer: Answer) => boolean, ms: number, what: string): Promise<Answer>
}

function createInbox(): Inbox {
  const come: { topic: string; answer: Answer }[] = []
  let wake = () => {}
  return {
    put({ topic, payload }) {
      try {
        come.push({ topic, answer: JSON.parse(new TextDecoder().decode(payload)) as Answer })
      } catch {
        return // A placement that was taken away, or nothing of ours.
      }
      wake()
    },
    async wait(fits, ms, what) {
      const { within } = await import('../../ops/deadline.ts')
      const found = new Promise<Answer>(resolve => {
        wake = () => {
          const one = come.find(({ topic, answer }) => fits(topic, answer))
          if (one) resolve(one.answer)
        }
        wake()
      })
      return await within(found, { ms, what })
    },
  }
}

function show(io: Io, reply: Answer, wantsJson: boolean): number {
  const { status = '', handoffId, problem } = reply
  if (problem) throw fromBody({ code: problem.code, message: problem.detail, hint: problem.hint })
  io.out(wantsJson ? json(reply) : listing(Object.entries({ status, ...(handoffId ? { handoffId } : {}) })))
  return EXIT.ok
}

export const mqttCommands = [keygen, tail, give]
