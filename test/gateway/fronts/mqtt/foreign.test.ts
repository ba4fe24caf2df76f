// A whole handoff driven by programs that know nothing of Godwit: mosquitto_sub and mosquitto_pub.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { signCommand } from '../../../../crypto/command-keys.ts'
import { eventually, within } from '../../../../ops/deadline.ts'
import { createChecker } from '../../../mqtt/asyncapi-checker.ts'
import { assert, suite } from '../../../support/suite.ts'
import { world } from '../../fixture.ts'
import { actOut, draft, embedded, mosquitto, nocKey, noMosquitto, PASSWORDS, stage, topics, type Who } from './support.ts'

const test = suite('gateway/fronts/mqtt: a foreign client', { ms: 40_000 })
const MS = 10_000

const common = (url: string, who: Who, version: '5' | '311') => {
  const { port } = new URL(url)
  return ['-h', '127.0.0.1', '-p', port, '-u', who, '-P', PASSWORDS[who], '-V', version === '5' ? 'mqttv5' : 'mqttv311']
}

/** mosquitto_sub with its lines: `topic payload`. */
function subscriber(url: string, who: Who, version: '5' | '311') {
  const child: ChildProcess = spawn('mosquitto_sub', [...common(url, who, version), '-q', '1', '-v', '-t', `${topics.root}/#`])
  let text = ''
  let errors = ''
  child.stdout?.on('data', chunk => (text += chunk))
  child.stderr?.on('data', chunk => (errors += chunk))
  const lines = () =>
    text
      .split('\n')
      .filter(line => line.includes(' '))
      .map(line => ({ topic: line.slice(0, line.indexOf(' ')), payload: line.slice(line.indexOf(' ') + 1) }))
  return {
    lines,
    line: (fits: (topic: string, payload: Record<string, unknown>) => boolean, what: string) =>
      eventually(
        () => {
          const found = lines().find(({ topic, payload }) => payload.startsWith('{') && fits(topic, JSON.parse(payload)))
          return found && (JSON.parse(found.payload) as Record<string, unknown>)
        },
        { ms: MS, everyMs: 20, what: `${what}; ${errors} ${lines().map(({ topic }) => topic)}` },
      ),
    async [Symbol.asyncDispose]() {
      const exited = new Promise(resolve => child.once('exit', resolve))
      child.kill()
      await within(exited, { ms: MS, what: 'the end of mosquitto_sub' })
    },
  }
}

async function publish(url: string, who: Who, version: '5' | '311', topic: string, payload: string): Promise<void> {
  const args = [...common(url, who, version), '-q', '1', '-t', topic, '-m', payload]
  await within(new Promise<void>((resolve, reject) => execFile('mosquitto_pub', args, error => (error ? reject(error) : resolve()))), {
    ms: MS,
    what: 'mosquitto_pub',
  })
}

const brokers = {
  'Mosquitto, MQTT 5': { version: '5' as const, open: mosquitto },
  'the embedded broker, MQTT 3.1.1': { version: '311' as const, open: undefined },
}

for (const [name, { version, open }] of Object.entries(brokers)) {
  test(
    `mosquitto_pub and mosquitto_sub drive a whole handoff through ${name}`,
    async () => {
      await using broker = await open?.()
      await using w = await world({ mqtt: broker?.options('tls') ?? embedded() })
      const url = broker ? `mqtt://127.0.0.1:${broker.port}` : (w.gateway.mqtt?.url ?? '')
      await eventually(() => w.gateway.mqtt?.up || undefined, { ms: MS, what: 'the gateway at its broker' })
      const s = await stage(w)
      const checker = await createChecker()
      await using noc = subscriber(url, 'noc', version)
      await using eye = subscriber(url, 'eye', version)
      const place = await noc.line(topic => topic.endsWith('/vm/vm-1/placement'), 'the placement')
      const acting = actOut(s)
      const fields = { toSite: 'b', fromSite: place['siteId'], expectedEpoch: place['epoch'] }
      const command = signCommand(nocKey, topics, 'start', draft(fields))
      await publish(url, 'noc', version, topics.build('start'), JSON.stringify(command))
      const reply = await noc.line((topic, one) => topic.endsWith('/reply/noc') && one['commandId'] === command.commandId, 'the reply')
      assert.is(reply['status'], 'accepted', JSON.stringify(reply))
      const handoffId = await acting
      await eye.line((topic, one) => topic.endsWith(`${handoffId}/status`) && one['phase'] === 'completed', 'completed')
      const result = await eye.line(topic => topic.endsWith(`${handoffId}/result`), 'the result')
      assert.is(result['type'], 'handoff.completed.v1')
      await eye.line((topic, one) => topic.endsWith('/vm/vm-1/placement') && one['siteId'] === 'b' && one['epoch'] === 2, 'the new place')
      for (const { topic, payload } of [...noc.lines(), ...eye.lines()]) if (payload.startsWith('{')) checker.check(topic, payload)
      // And back, by a command that is too late, refused, and one in time.
      const late = signCommand(nocKey, topics, 'start', draft({ toSite: 'a', expectedEpoch: 1 }))
      await publish(url, 'noc', version, topics.build('start'), JSON.stringify(late))
      const refused = await noc.line((topic, one) => topic.endsWith('/reply/noc') && one['commandId'] === late.commandId, 'the refusal')
      assert.is((refused['problem'] as { code: string }).code, 'EPOCH_STALE')
    },
    { skip: noMosquitto },
  )
}

test.run()
