from wdjax.audit._declared import Audit, audit
