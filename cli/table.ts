// All commands, in the order of the help. Each file is small: a command imports its large modules when it runs.
import type { CliCommand } from './command.ts'
import { bench } from './commands/bench.ts'
import { cancel } from './commands/cancel.ts'
import { demo } from './commands/demo.ts'
import { doctor } from './commands/doctor.ts'
import { enrolCommands } from './commands/enrol.ts'
import { events } from './commands/events.ts'
import { explain } from './commands/explain.ts'
import { gateway } from './commands/gateway.ts'
import { imageCommands } from './commands/image.ts'
import { keygen } from './commands/keygen.ts'
import { migrate } from './commands/migrate.ts'
import { migrations } from './commands/migrations.ts'
import { mqttCommands } from './commands/mqtt.ts'
import { node } from './commands/node.ts'
import { plan } from './commands/plan.ts'
import { recover } from './commands/recover.ts'
import { rootCommands } from './commands/root.ts'
import { simCommands } from './commands/sim.ts'
import { simLink } from './commands/sim-link.ts'
import { siteCommands } from './commands/site.ts'
import { status } from './commands/status.ts'
import { vmCommands } from './commands/vm.ts'

export const commands: readonly CliCommand[] = [
  keygen,
  ...rootCommands,
  ...enrolCommands,
  gateway,
  node,
  ...imageCommands,
  ...vmCommands,
  migrate,
  cancel,
  status,
  events,
  migrations,
  ...siteCommands,
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
