// All commands, in the order help shows them. Each file is light: what is heavy it imports when it runs.
import type { Command } from './command.ts'
import { bench } from './commands/bench.ts'
import { cancel } from './commands/cancel.ts'
import { demo } from './commands/demo.ts'
import { doctor } from './commands/doctor.ts'
import { enrolCommands } from './commands/enrol.ts'
import { explain } from './commands/explain.ts'
import { gateway } from './commands/gateway.ts'
import { keygen } from './commands/keygen.ts'
import { migrate } from './commands/migrate.ts'
import { mqttCommands } from './commands/mqtt.ts'
import { node } from './commands/node.ts'
import { plan } from './commands/plan.ts'
import { recover } from './commands/recover.ts'
import { rootCommands } from './commands/root.ts'
import { simCommands } from './commands/sim.ts'
import { simLink } from './commands/sim-link.ts'
import { status } from './commands/status.ts'
import { vmCommands } from './commands/vm.ts'

export const commands: readonly Command[] = [
  keygen,
  ...rootCommands,
  ...enrolCommands,
  gateway,
  node,
  ...vmCommands,
  migrate,
  cancel,
  status,
  recover,
  ...mqttCommands,
  plan,
  explain,
  doctor,
  ...simCommands,
  simLink,
  demo,
  bench,
]
