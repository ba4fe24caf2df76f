// godwit mqtt keygen | tail | command | measure: tools for integrators (docs/reference/mqtt.md). They connect to the
// broker, not to the gateway, as an integrator's programs do.
import { randomBytes, randomUUID } from 'node:crypto'
import { join } from 'node:path'
import type { IncomingMessage, MqttLink } from '../../mqtt/client.ts'
import type { Action, Topics } from '../../mqtt/topics.ts'
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
  ca: { kind: 'path', value: 'FILE', help: "certificate authority (PEM) of the broker (default: the system's authorities)" },
  certificate: { kind: 'path', value: 'FILE', help: 'client certificate for the broker' },
  'certificate-key': { kind: 'path', value: 'FILE', help: 'key of the client certificate' },
} as const satisfies OptionSpecs

const CONNECT_MS = 10_000
const PLACEMENT_MS = 5_000
const TTL_MS = 30_000

type Connected = { topics: Topics; link: MqttLink; user: string | undefined }

/** Connects and subscribes, or throws the reason of the failure. */
async function connect(
  io: Io,
  flags: MqttFlags,
  o: {
    subscriptions: (topics: Topics, user: string | undefined) => string[]
    onMessage: (message: IncomingMessage) => void
    onDown?: () => void
  },
): Promise<Connected> {
  const [{ connectMqtt }, { topicsOf }, { silentLog }, { target, tenant, user }] = await Promise.all([
    import('../../mqtt/client.ts'),
    import('../../mqtt/topics.ts'),
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
  summary: 'create a key that signs commands or measurements over MQTT',
  details:
    'Writes the secret key (0600) and prints the lines to add to mqtt.commandKeys or mqtt.measurementKeys of gateway.yaml. The sender keeps the secret key; the gateway has only the public key.',
  options: {
    for: { kind: 'choice', choices: ['command', 'measurement'], help: 'kind of message to sign (default command)' },
    name: { kind: 'text', value: 'NAME', help: 'name of the key: 1 to 64 of a-z, 0-9 and -', required: true },
    out: {
      kind: 'path',
      value: 'FILE',
      help: 'file to write (default: command-NAME.key or measurement-NAME.key in the configuration folder)',
    },
    force: { kind: 'flag', help: 'overwrite an existing key' },
    json: shared.json,
  },
  examples: ['godwit mqtt keygen --name noc-1', 'godwit mqtt keygen --for measurement --name probe-1'],
  run: async ({ options, io }) => {
    const [{ encodeCommandKey, generateCommandKey }, { writeFileSafely }, { NAME_PATTERN }] = await Promise.all([
      import('../../crypto/command-keys.ts'),
      import('../../ops/files.ts'),
      import('../../wire/types.ts'),
    ])
    const { name, force, for: use = 'command' } = options
    if (!NAME_PATTERN.test(name)) throw new GodwitError('USAGE', `--name '${name}': expected 1 to 64 of a-z, 0-9 and -`)
    const path = options.out ?? join(defaultPaths(io).configDir, `${use}-${name}.key`)
    const key = generateCommandKey(name, use)
    await writeFileSafely(path, encodeCommandKey(key), { overwrite: force })
    const { publicKey } = key
    if (options.json) io.out(json({ name, publicKey, key: path }))
    else {
      const rights = use === 'command' ? 'actions: [start, prestage, cancel, pin]' : 'kinds: [latency, radio, location, siteLink]'
      const line = `mqtt: { ${use}Keys: { ${name}: { publicKey: ${publicKey}, ${rights} } } }`
      io.out(listing(Object.entries({ name, publicKey, key: path, 'gateway.yaml': line })))
    }
    return EXIT.ok
  },
})

const tail = command({
  name: 'mqtt tail',
  summary: 'show the messages of the MQTT broker',
  details:
    'Prints one line of JSON for each message: {"topic", "retained", "payload"}. Runs until Ctrl-C and reconnects to the broker by itself. ' +
    "Shows only the topics that this user may read: a user with 'observe' sees all but commands, replies and measurements.",
  options: {
    topic: { kind: 'text', value: 'FILTER', help: "filter below the tenant's root, such as handoff/# or site/+/state (default #)" },
    count: { kind: 'integer', value: 'N', min: 1, max: 1_000_000, help: 'stop after this many messages' },
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
      onDown: () => io.err('the broker does not answer; reconnecting\n'),
    })
    await over.promise
    stop()
    await link.close()
    return EXIT.ok
  },
})

function lineOf({ topic, retained, payload }: IncomingMessage): string {
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
  key: { kind: 'path', value: 'FILE', help: 'key that signs the command (godwit mqtt keygen)', required: true },
  to: { kind: 'text', value: 'SITE', help: 'start, prestage: target site' },
  method: { kind: 'choice', choices: ['live', 'cold'], help: 'start: migration method (default live)' },
  downtime: { kind: 'duration', value: 'TIME', help: 'start: longest acceptable downtime' },
  'max-bytes': { kind: 'size', value: 'SIZE', help: 'start: cancel the migration if it sends more than this before the switchover' },
  handoff: { kind: 'text', value: 'ID', help: 'cancel: id of the migration (default: the running one)' },
  off: { kind: 'flag', help: 'pin: remove the pin' },
  ue: { kind: 'text', value: 'KEY', help: 'id of the user behind this command' },
  reason: { kind: 'text', value: 'TEXT', help: "reason for the gateway's log (default: godwit mqtt command)" },
  epoch: {
    kind: 'integer',
    value: 'N',
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    help: 'epoch of the VM (default: the epoch in its placement)',
  },
  'reply-to': { kind: 'text', value: 'NAME', help: "last level of the reply topic (default: the user's name, or godwit-cli)" },
  timeout: { kind: 'duration', value: 'TIME', help: 'how long to wait for the reply (default 20s)' },
  json: shared.json,
  ...broker,
} as const satisfies OptionSpecs

const give = command({
  name: 'mqtt command',
  summary: 'sign a command, send it over MQTT and wait for the reply',
  details:
    'start migrates a VM, cancel ends a migration, pin keeps a VM at its site (--off removes the pin), prestage checks whether the target can run the VM and reserves memory there for two minutes. The command carries the epoch of ' +
    "the VM's placement (read from the broker first) and expires after 30 s. If the gateway rejects it, the exit code is that of the error code.",
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
      import('../../crypto/command-keys.ts'),
      import('../../ops/files.ts'),
      import('../../mqtt/topics.ts'),
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

const measure = command({
  name: 'mqtt measure',
  summary: 'publish a measurement over MQTT, signed if --key is given',
  details:
    "TOPIC is relative to the tenant's root, PAYLOAD is JSON as in docs/reference/mqtt.md. The command checks it, adds the current time (`at`, or `sampledAt` of a link), signs it with --key and sends it. " +
    'A measurement has no reply: godwit_gateway_mqtt_measurements_total counts accepted and rejected ones, and godwit explain shows the values that the policy uses.',
  positionals: [
    { name: 'TOPIC', help: 'ue/KEY/meas/latency, ue/KEY/meas/radio, ue/KEY/meas/location or site/SITE/link/SITE' },
    { name: 'PAYLOAD', help: 'the measurement (JSON)' },
  ],
  options: {
    key: { kind: 'path', value: 'FILE', help: 'key that signs the measurement (godwit mqtt keygen --for measurement)' },
    ...broker,
  },
  examples: [
    `godwit mqtt measure ue/u1/meas/latency '{"seq":1,"vmId":"web-1","targetSite":"a","rttMs":12.5}' --key measurement-probe-1.key`,
    `godwit mqtt measure site/a/link/b '{"rttMs":24,"availableBps":1e9}' --user telco --password-file telco.password`,
  ],
  run: async ({ options, args, io }) => {
    const [{ datedMeasurement, decodeCommandKey, signPayload }, { isMeasured }, { CHANNELS }, { check, parseJson }, { readSecret }] =
      await Promise.all([
        import('../../crypto/command-keys.ts'),
        import('../../gateway/handoff/measurements.ts'),
        import('../../mqtt/channels.ts'),
        import('../../wire/schema.ts'),
        import('../../ops/files.ts'),
      ])
    const key = options.key === undefined ? undefined : decodeCommandKey(await readSecret(options.key), options.key, 'measurement')
    const given = parseJson(args[1] ?? '', { what: 'PAYLOAD', code: 'USAGE' })
    const { topics, link } = await connect(io, options, { subscriptions: () => [], onMessage: () => {} })
    try {
      const topic = `${topics.root}/${args[0] ?? ''}`
      const kind = topics.parse(topic)?.kind
      if (!kind || !isMeasured(kind))
        throw new GodwitError('USAGE', `'${args[0]}' is not a measurement topic`, { hint: 'see godwit mqtt measure --help' })
      const { qos, retained, expirySeconds, schema } = CHANNELS[kind]
      const fields = { ...(given as object), ...(kind === 'siteLink' ? { sampledAt: '' } : {}) }
      const dated = datedMeasurement(fields, Date.now())
      check(schema, dated, { what: 'PAYLOAD', code: 'USAGE' })
      const payload = JSON.stringify(key ? signPayload(key, topic, dated) : dated)
      await link.publish({ topic, payload, qos, retained, ...(expirySeconds === undefined ? {} : { expirySeconds }) })
      return EXIT.ok
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
  if (moves && o.to === undefined) throw new GodwitError('USAGE', '--to is missing: name the target site')
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
    throw new GodwitError('VM_UNKNOWN', `the broker has no placement of VM '${vm}'`, {
      cause,
      hint: 'check the name, and that this user may read vm/+/placement; or give --epoch',
    })
  }
}

type Inbox = {
  put(message: IncomingMessage): void
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
        return // A deleted placement, or a message of another format.
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

export const mqttCommands = [keygen, tail, give, measure]
