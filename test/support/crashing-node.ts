// `godwit node` that kills itself (SIGKILL: nothing is tidied up) the moment an ownership state is durable. Arguments: configuration file, side:STATE.
import { loadNodeConfig } from '../../cli/config.ts'
import { processIo } from '../../cli/io.ts'
import { startNode } from '../../edge-node/agent.ts'
import { createLog } from '../../ops/log.ts'
import { createEngines } from '../../transport/select.ts'

const [file = '', crashAt = ''] = process.argv.slice(2)
const config = await loadNodeConfig(processIo(), { file })
const node = await startNode({
  config,
  engines: createEngines(),
  version: 'lab',
  log: createLog({ level: 'debug', format: 'text' }),
  onRecord(side, state) {
    if (`${side}:${state}` === crashAt) process.kill(process.pid, 'SIGKILL')
  },
})
process.once('SIGTERM', () => void node.close().then(() => process.exit(0)))
